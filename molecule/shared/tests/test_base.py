"""The base configuration of every host."""

from __future__ import annotations

from typing import Any

import pytest
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
    for name, value in settings.items():
        assert value is None or str(host.sysctl(name)) == str(value), name
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
