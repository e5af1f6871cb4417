"""The base configuration of every host."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host


@pytest.fixture
def admin(variables: dict[str, Any]) -> str:
    """Return the administrator's account."""
    name: str = variables["base_admin_user"]
    assert name
    return name


def test_no_unit_has_failed(host: Host) -> None:
    assert host.check_output("systemctl is-system-running --wait") == "running"


def test_chrony_synchronises_the_clock(host: Host) -> None:
    assert host.run("chronyc -n tracking").succeeded
    assert host.check_output("systemctl is-enabled chrony.service") == "enabled"


def test_the_operator_has_sudo_without_a_password(host: Host, admin: str) -> None:
    assert host.check_output(f"runuser --user {admin} -- sudo --non-interactive id --user") == "0"


def test_only_the_operators_keys_are_authorised(host: Host, variables: dict[str, Any], admin: str) -> None:
    home = host.user(admin).home
    assert host.check_output(f"runuser --user {admin} -- cat {home}/.ssh/authorized_keys").splitlines() == [
        key.strip() for key in variables["base_admin_authorized_keys"]
    ]
    assert host.user(admin).password in ("!", "*", "!*")


def test_people_have_accounts_whose_sudo_asks_for_a_password(host: Host, variables: dict[str, Any]) -> None:
    """The password of the lab's operator is "verify"."""
    assert list(variables["base_operators"]) == ["alice", "bob"]
    assert host.run("runuser --user alice -- sudo --non-interactive id").failed
    asked = "echo verify | runuser --user alice -- sudo --stdin --prompt= id --user"
    assert host.check_output(asked) == "0"
    assert host.run("echo wrong | runuser --user alice -- sudo --stdin --prompt= id").failed
    # Bob may log in and read logs, and nothing else.
    assert host.run("echo verify | runuser --user bob -- sudo --stdin --prompt= id").failed
    assert "adm" in host.user("bob").groups
    for name, person in variables["base_operators"].items():
        keys = host.file(f"/home/{name}/.ssh/authorized_keys").content_string.splitlines()
        assert keys == [key.strip() for key in person["ssh_keys"]]
        assert host.file(f"/home/{name}").mode == 0o700


@pytest.mark.on("complete")
def test_a_password_is_set_once(
    host: Host,
    variables: dict[str, Any],
    ansible: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """An operator may get a password later, and changes it with passwd."""
    role = {"name": "base", "tasks_from": "admin"}
    play = {"hosts": "all", "become": True, "gather_facts": False}
    task = {"name": "Configure accounts", "ansible.builtin.include_role": role}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play | {"tasks": [task]}]))
    password, other = variables["base_operators"]["bob"]["password"], "$6$fastmetal$another"
    for before, after in (("!", password), ("!!", password), (other, other)):
        host.check_output(f"usermod --password '{before}' bob")
        done = ansible("ansible-playbook", str(tmp_path / "play.yml"))
        assert done.returncode == 0, done.stdout
        assert host.user("bob").password == after
    host.check_output(f"usermod --password '{password}' bob")


def test_logins_create_files_that_others_cannot_read(
    host: Host, variables: dict[str, Any], admin: str
) -> None:
    assert host.check_output(f"su - {admin} -c umask") == "0" + variables["base_umask"]


def test_crashes_leave_no_core_dump(host: Host, admin: str) -> None:
    assert host.check_output(f"su - {admin} -c 'ulimit -H -c'") == "0"
    assert host.check_output("systemctl show --property=DefaultLimitCORE") == "DefaultLimitCORE=0"


def test_other_users_have_no_sudo(host: Host) -> None:
    assert host.run("runuser --user nobody -- sudo --non-interactive id").failed


def test_the_operator_reads_logs_without_sudo(host: Host, admin: str) -> None:
    host.check_output("logger fastmetal-test-line")
    host.check_output("journalctl --sync")
    assert "fastmetal-test-line" in host.check_output(
        f"runuser --user {admin} -- journalctl --since=-1min --grep=fastmetal-test-line"
    )


def test_the_journal_is_persistent_and_has_a_maximum_size(host: Host, variables: dict[str, Any]) -> None:
    machine = host.file("/etc/machine-id").content_string.strip()
    assert host.file(f"/var/log/journal/{machine}/system.journal").exists
    settings = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    assert f"SystemMaxUse={variables['base_journal_max_size']}" in settings.splitlines()


def test_kernel_settings_are_applied(host: Host, variables: dict[str, Any]) -> None:
    settings = variables["base_default_sysctl"] | variables["base_sysctl"]
    # A lab host is a container, which has a network of its own and nothing else of the kernel.
    own = {
        name: value
        for name, value in settings.items()
        if re.match(r"net\.(ipv[46]\.|core\.somaxconn$)", name)
    }
    assert len(own) > 20
    for name, value in own.items():
        assert value is None or str(host.sysctl(name)) == str(value), name
    assert set(settings) - set(own) >= {"kernel.kptr_restrict", "fs.suid_dumpable", "vm.swappiness"}
    assert "kernel." not in host.file("/etc/sysctl.d/90-fastmetal.conf").content_string
    assert host.sysctl("net.core.somaxconn") >= 4096


def test_a_login_shell_has_the_configured_locale(host: Host, variables: dict[str, Any], admin: str) -> None:
    locale = variables["base_locale"]
    assert f"LANG={locale}" in host.check_output(f"su - {admin} -c locale").splitlines()


def test_the_time_zone_is_set(host: Host, variables: dict[str, Any]) -> None:
    zone = variables["base_timezone"]
    assert host.check_output("date +%Z%z") == host.check_output(f"TZ=/usr/share/zoneinfo/{zone} date +%Z%z")


def test_only_security_upgrades_are_automatic(host: Host) -> None:
    run = host.run("LC_ALL=C.UTF-8 unattended-upgrade --dry-run --verbose")
    origins = [line for line in run.stdout.splitlines() if line.startswith("Allowed origins are:")]
    assert len(origins) == 1, run.stderr
    assert all("-security" in origin for origin in origins[0].split(": ")[1].split("origin=")[1:])
    assert host.service("apt-daily-upgrade.timer").is_running


def test_a_large_log_is_rotated_before_its_scheduled_rotation(host: Host) -> None:
    script = """
    set -e
    trap 'rm -rf /etc/logrotate.d/zz-test /var/log/zz-test.log*' EXIT
    printf '%s\\n' '/var/log/zz-test.log {' monthly 'rotate 1' nocompress '}' > /etc/logrotate.d/zz-test
    truncate --size=10G /var/log/zz-test.log
    logrotate --state /tmp/zz-test.state /etc/logrotate.conf
    rm /tmp/zz-test.state
    test -e /var/log/zz-test.log.1
    """
    assert host.run("bash -c %s", script).rc == 0
    assert host.service("logrotate.timer").is_running
    # Hourly, as systemd prints it.
    calendar = host.check_output("systemctl show --property=TimersCalendar logrotate.timer")
    assert "*-*-* *:00:00" in calendar
