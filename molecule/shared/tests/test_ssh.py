"""The SSH server: what it admits, and that no change of its configuration locks an operator out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host

from tests.lab import wait_until

Play = Callable[..., subprocess.CompletedProcess[str]]

LIVE = "/etc/ssh/sshd_config.d/00-fastmetal.conf"
CANDIDATE = "/etc/fastmetal/ssh/sshd.conf"
PROGRAM = "/usr/local/sbin/fastmetal-sshd"
FACTS = {"gather_subset": ["!all", "!min", "distribution"], "filter": ["ansible_distribution*"]}


@pytest.fixture(scope="module")
def play(
    host: Host, ansible_on_all: Play, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Return a function that applies the role to the host under test with some variables, as an account."""
    tasks = [{"ansible.builtin.setup": FACTS}]
    roles = [{"hosts": "all", "become": True, "gather_facts": False, "pre_tasks": tasks, "roles": ["ssh"]}]
    playbook = tmp_path_factory.mktemp("ssh") / "play.yml"
    playbook.write_text(yaml.safe_dump(roles))
    # The role finds the account in the inventory, so an argument of the command line must not hide it.
    plain = ("--limit", host.backend.hostname, str(playbook))
    yield lambda *words, **values: ansible_on_all(
        "ansible-playbook", *plain, *words, "-e", json.dumps(values)
    )
    done = ansible_on_all("ansible-playbook", *plain, "-e", json.dumps({"ansible_user": "ops"}))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def login(pytestconfig: pytest.Config, host: Host) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that logs in on a new connection and runs a command."""
    fresh = ("-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "BatchMode=yes")

    def run(account: str, *command: str) -> subprocess.CompletedProcess[str]:
        words = [
            "ssh",
            "-F",
            str(pytestconfig.option.ssh_config),
            *fresh,
            "-l",
            account,
            host.backend.hostname,
        ]
        return subprocess.run([*words, *command], capture_output=True, text=True, timeout=30, check=False)

    return run


def effective(host: Host, user: str, address: str) -> dict[str, str]:
    """Return the settings that hold for a login of an account from an address."""
    lines = host.check_output(f"/usr/sbin/sshd -T -C user={user},host=x,addr={address}").splitlines()
    return dict(line.partition(" ")[::2] for line in lines)


def test_only_keys_and_listed_accounts_are_admitted(host: Host, variables: dict[str, Any]) -> None:
    settings = effective(host, "ops", "192.0.2.1")
    assert settings["authenticationmethods"] == "publickey"
    for name in (
        "passwordauthentication",
        "kbdinteractiveauthentication",
        "x11forwarding",
        "allowagentforwarding",
    ):
        assert settings[name] == "no", name
    assert settings["hostkey"] == "/etc/ssh/ssh_host_ed25519_key"
    assert 0 < int(settings["logingracetime"]) <= 30
    # More than the firewall admits of one address leave room for others.
    assert int(settings["maxstartups"].split(":")[0]) > int(settings["persourcemaxstartups"])
    assert settings["permitrootlogin"] == "no"
    assert (
        effective(host, "root", variables["ssh_root_addresses"][0])["permitrootlogin"] == "without-password"
    )
    allowed = host.check_output(f"grep ^AllowUsers {LIVE}").split()[1:]
    assert allowed == [*sorted(variables["ssh_base_accounts"]), f"root@{variables['ssh_root_addresses'][0]}"]


def test_an_account_that_is_not_listed_cannot_log_in(host: Host, login: Play) -> None:
    """Even with an authorized key."""
    keys = "install -d -o mallory ~mallory/.ssh && cp /root/.ssh/authorized_keys ~mallory/.ssh/"
    host.check_output(f"bash -c 'useradd -m -s /bin/bash mallory && {keys} && chown mallory ~mallory/.ssh/*'")
    try:
        refused = login("mallory", "id")
        assert refused.returncode == 255
        assert "Permission denied (publickey)" in refused.stderr
    finally:
        host.check_output("userdel --remove mallory 2>/dev/null")
    assert login("ops", "id", "-un").stdout == "ops\n"


def test_forwarding_reaches_the_consoles_only(host: Host, variables: dict[str, Any]) -> None:
    settings = effective(host, "ops", "192.0.2.1")
    consoles = variables["ssh_permit_open"]
    assert settings["allowtcpforwarding"] == ("local" if consoles else "no")
    assert settings["permitopen"] == (" ".join(consoles) or "none")
    assert settings["allowstreamlocalforwarding"] == "no"


@pytest.mark.on("complete")
def test_a_configuration_that_locks_out_is_restored(host: Host, play: Play, login: Play) -> None:
    before = host.file(LIVE).content_string
    # Keys are read from where there are none: sshd accepts it, and no login succeeds.
    run = play(ssh_settings={"AuthorizedKeysFile": "/nonexistent"})
    assert run.returncode != 0
    assert "no second connection of root works with the new configuration of sshd" in run.stdout
    assert host.file(LIVE).content_string == before
    assert login("ops", "sudo", "-n", "id", "-u").stdout == "0\n"


@pytest.mark.on("complete")
def test_a_setting_that_sshd_refuses_changes_nothing(host: Host, play: Play) -> None:
    before = host.file(LIVE).content_string
    run = play(ssh_settings={"KexAlgorithms": "no-such-algorithm"})
    assert run.returncode != 0
    assert "would be invalid, nothing was written" in run.stdout
    assert host.file(LIVE).content_string == before


@pytest.mark.on("complete")
@pytest.mark.parametrize(
    "change",
    [
        "sed -i 's/^Include.*/PasswordAuthentication no/' /etc/ssh/sshd_config",
        "echo 'AllowUsers mallory' > /etc/ssh/sshd_config.d/99-other.conf",
    ],
)
def test_a_configuration_that_other_files_weaken_is_refused(host: Host, change: str) -> None:
    before = host.file(LIVE).content_string
    script = f"""
    cp -p /etc/ssh/sshd_config /root/sshd_config
    cp -p {CANDIDATE} /root/candidate
    back='mv /root/sshd_config /etc/ssh/; mv /root/candidate {CANDIDATE}'
    trap "$back; rm -f /etc/ssh/sshd_config.d/99-other.conf" EXIT
    {change}
    echo '# changed' >> {CANDIDATE}
    {PROGRAM} try 30
    """
    tried = host.run("bash -c %s", script)
    assert tried.rc == 1
    assert tried.stderr.startswith("Other files of sshd change who may log in, nothing was changed")
    assert host.file(LIVE).content_string == before


@pytest.mark.on("complete")
def test_a_trial_without_an_answer_ends_by_itself(host: Host, login: Play) -> None:
    """The control node died after it had started the trial."""
    before = host.file(LIVE).content_string
    script = f"""
    set -e
    cp {CANDIDATE} /tmp/candidate
    trap 'mv /tmp/candidate {CANDIDATE}' EXIT
    echo 'AuthorizedKeysFile /nonexistent' >> {CANDIDATE}
    {PROGRAM} try 2
    grep -q nonexistent {LIVE}
    for i in $(seq 100); do grep -q nonexistent {LIVE} || exit 0; sleep 0.1; done
    exit 1
    """
    host.check_output("bash -c %s", script)
    assert host.file(LIVE).content_string == before
    wait_until(5, lambda: login("ops", "id", "-un").stdout == "ops\n")
    # A host that boots during a trial has no timer any more: its unit restores.
    trial = f"cp -a {LIVE} /etc/fastmetal/ssh/before; echo '# unconfirmed' >> {LIVE}"
    boot = f"set -e; {trial}; systemctl restart ssh.service"
    host.check_output("bash -c %s", boot)
    assert host.file(LIVE).content_string == before
    assert not host.file("/etc/fastmetal/ssh/before").exists


@pytest.mark.on("complete")
def test_root_is_closed_once_the_administrator_works(host: Host, play: Play, login: Play) -> None:
    """The first run logs in as root; the rest of it, and later runs, log in as the administrator."""
    sudoers = Path("/etc/sudoers.d/fastmetal")
    host.check_output(f"mv {sudoers} /root/")
    try:
        run = play(ssh_root_addresses=[])
        assert run.returncode == 0, run.stdout
        assert "ops cannot log in from this control node with sudo" in run.stdout
        assert login("root", "id", "-un").stdout == "root\n"
    finally:
        host.check_output(f"mv /root/{sudoers.name} {sudoers.parent}")
    run = play(ssh_root_addresses=[])
    assert run.returncode == 0, run.stdout
    refused = login("root", "id")
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr
    assert login("ops", "sudo", "-n", "id", "-u").stdout == "0\n"
    # The next run changes nothing.
    again = play(ssh_root_addresses=[], ansible_user="ops")
    assert "changed=0" in again.stdout, again.stdout
