"""What a host upgrades, holds and restarts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.fastmetal.metal.plugins.modules import host_upgrade

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = """Reading package lists...
Inst openssl [3.0.15-1] (3.0.17-1 Debian-Security:12/stable-security [amd64])
Inst linux-image-6.1.0-40-amd64 (6.1.153-1 Debian:12/stable [amd64])
Conf openssl (3.0.17-1 Debian-Security:12/stable-security [amd64])
"""


def test_reads_what_apt_plans() -> None:
    assert host_upgrade.planned(SIMULATED) == {
        "openssl": "3.0.15-1 -> 3.0.17-1",
        "linux-image-6.1.0-40-amd64": "none -> 6.1.153-1",
    }


def test_held_packages_keep_their_version(tmp_path: Path) -> None:
    preferences = tmp_path / "preferences"
    installed = {"postgresql-15": "15.10-1", "libpq5": "15.10-1", "xpostgresql-1": "1"}
    assert host_upgrade.pins(installed, ["postgresql-.*", "libpq5$"], preferences) == (
        "Package: libpq5\nPin: version 15.10-1\nPin-Priority: 1001\n\n"
        "Package: postgresql-15\nPin: version 15.10-1\nPin-Priority: 1001\n\n"
    )
    assert host_upgrade.pins(installed, [], preferences) == ""
    preferences.write_text("Package: nginx\nPin: release a=stable\nPin-Priority: 900\n")
    pins = host_upgrade.pins(installed, ["libpq5$"], preferences)
    assert [line for line in pins.splitlines() if line.startswith("Package")] == [
        "Package: libpq5",
        "Package: nginx",
    ]


class Ended(Exception):  # noqa: N818  (a stub of the end of a module)
    """The module has ended."""


class Module:
    """A stub of Ansible's module that records commands; `fails` is the word of one that fails."""

    def __init__(self, tmpdir: Path, check_mode: bool, fails: str = "") -> None:
        self.tmpdir, self.check_mode, self.fails = str(tmpdir), check_mode, fails
        self.params = {"held": [], "upgrade": True}
        self.commands: list[str] = []

    def run_command(self, command: list[str], **_: object) -> tuple[int, str, str]:
        """Record the command."""
        self.commands.append(" ".join(command))
        failed = bool(self.fails) and self.fails in command
        return int(failed), "", "E: no mirror\n" if failed else ""

    def fail_json(self, msg: str) -> None:
        """End the module."""
        raise Ended(msg)

    def exit_json(self, **_: object) -> None:
        """End the module."""
        raise Ended


@pytest.mark.parametrize("check_mode", [True, False])
def test_package_lists_are_updated_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_mode: bool
) -> None:
    for fails, message in (("", ""), ("update", "The package lists cannot be updated: E: no mirror")):
        module = Module(tmp_path, check_mode, fails)
        monkeypatch.setattr(host_upgrade, "AnsibleModule", lambda module=module, **_: module)
        with pytest.raises(Ended) as ended:
            host_upgrade.main()
        assert str(ended.value) == message
        assert module.commands[0] == "apt-get -qq --error-on=any update"


def test_finds_units_that_use_replaced_files(tmp_path: Path) -> None:
    processes = {
        "1": ("/usr/lib/x/libssl.so.3 (deleted)", "0::/system.slice/redis-server@cache.service"),
        "2": ("/usr/lib/x/libssl.so.3", "0::/system.slice/nginx.service"),
        "3": ("/memfd:PostgreSQL.1 (deleted)", "0::/system.slice/postgresql@17-main.service"),
        "4": ("/usr/bin/python3.13 (deleted)", "0::/services.slice/api@1.service/worker"),
    }
    for pid, (mapped, group) in processes.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "maps").write_text(f"7f00-7f01 r-xp 00000000 08:01 42 {mapped}\n")
        (tmp_path / pid / "cgroup").write_text(f"{group}\n")
    (tmp_path / "5").mkdir()
    assert host_upgrade.outdated_units(tmp_path) == ["api@1.service", "redis-server@cache.service"]


def test_the_newest_kernel_is_compared_by_number(tmp_path: Path) -> None:
    assert host_upgrade.newest_kernel(tmp_path) == ""
    for release in ("6.1.0-9-amd64", "6.1.0-40-amd64", "6.1.0-38-amd64"):
        (tmp_path / f"vmlinuz-{release}").touch()
    assert host_upgrade.newest_kernel(tmp_path) == "6.1.0-40-amd64"


def test_names_each_reason_to_reboot(tmp_path: Path) -> None:
    assert host_upgrade.reboot_reasons("6.1", "6.1", ["nginx.service"], tmp_path) == []
    (tmp_path / "reboot-required").touch()
    (tmp_path / "reboot-required.pkgs").write_text("libc6\ndbus\nlibc6\n")
    assert host_upgrade.reboot_reasons("6.1", "6.2", ["dbus.service"], tmp_path) == [
        "the kernel 6.2 is installed, and 6.1 runs",
        "a package asks for it: dbus, libc6",
        "dbus.service still runs replaced files",
    ]


@pytest.mark.parametrize(
    ("unit", "passing"),
    [
        ("api@1.4.0-0123456789ab.3.service", False),
        ("api-worker-mail@1.4.0-0123456789ab.3.service", False),
        ("fastmetal-exporters.service", False),
        ("fastmetal-forward-logs.service", False),
        ("fastmetal-host-metrics.service", False),
        ("fastmetal-passwords.service", False),
        ("fastmetal-postgresql-timeouts.service", False),
        ("fastmetal-receive-logs.service", False),
        ("nginx.service", False),
        ("prometheus-nginx-exporter.service", False),
        ("systemd-journal-upload.service", False),
        ("systemd-journald.service", False),
        ("systemd-logind.service", False),
        ("systemd-networkd.service", False),
        ("systemd-resolved.service", False),
        ("systemd-udevd.service", False),
        ("api-job-prune.service", True),
        ("api-rollback.service", True),
        ("api-run-4711.service", True),
        ("api-stop-workers@1.4.0-0123456789ab.2.service", True),
        ("fastmetal-acme.service", True),
        ("fastmetal-firewall-accounts.service", True),
        ("fastmetal-firewall-rollback.service", True),
        ("fastmetal-sshd-restore.service", True),
        ("nginx-drain@api-192-0-2-7-8443.service", True),
        ("nginx-patch-api-192-0-2-7-8443.service", True),
        ("run-u12.service", True),
        ("serial-getty@ttyS0.service", True),
        ("systemd-hostnamed.service", True),
        ("systemd-journal-remote.service", True),
        ("user@0.service", True),
    ],
)
def test_patching_waits_for_units_that_always_run(unit: str, passing: bool) -> None:
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/patch_host.yml").read_text())
    names = next(found for task in tasks if (found := task.get("vars", {}).get("__patch_passing_names")))
    assert bool(re.match(f"^({'|'.join(names)})", unit)) is passing
