"""systemctl's answers are parsed, and its refusals are errors."""

from __future__ import annotations

import pytest
from systemd import SystemctlError, show, systemctl

from tests.unit.conftest import FakeCommand


def test_returns_the_output(fake_command: FakeCommand) -> None:
    fake_command("systemctl", 'echo "$@"')
    assert systemctl("is-active", "a.service") == "is-active a.service\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo out; echo Denied. >&2; exit 4", "Denied."),
        ("echo inactive; exit 3", "inactive"),
        ("exit 5", "status 5"),
    ],
)
def test_a_failure_is_an_error_with_a_reason(fake_command: FakeCommand, script: str, reason: str) -> None:
    fake_command("systemctl", script)
    with pytest.raises(SystemctlError) as error:
        systemctl("start", "a.service")
    assert str(error.value) == f"systemctl start a.service failed: {reason}"


def test_shows_the_properties_of_each_unit(fake_command: FakeCommand) -> None:
    fake_command(
        "systemctl",
        r"""[ "$*" = "show --property=Id,Environment a.service b.service" ] || exit 1
        printf 'Id=a.service\nEnvironment=A=1 B=2\n\nId=b.service\nEnvironment=\n'""",
    )
    assert show(("Id", "Environment"), "a.service", "b.service") == [
        {"Id": "a.service", "Environment": "A=1 B=2"},
        {"Id": "b.service", "Environment": ""},
    ]
