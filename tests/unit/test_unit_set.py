"""unit_set gives each unit the commands that it needs, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plugins.modules import unit_set
from tests.unit.conftest import FakeCommand, RunModule


class Systemd:
    """A systemctl that knows states of units and records its commands."""

    def __init__(self, folder: Path, fake_command: FakeCommand) -> None:
        self.states = folder / "states"
        self.states.mkdir()
        self.log = folder / "commands"
        self.log.touch()
        unknown = folder / "unknown-unit"
        unknown.write_text("ActiveState=inactive\nUnitFileState=\nNeedDaemonReload=no\n")
        fake_command(
            "systemctl",
            f"""
            if [ "$1" = show ]; then
                shift 2
                for unit; do cat {self.states}/$unit 2>/dev/null || cat {unknown}; echo; done
            elif [ "$1" = list-units ]; then
                shift 4
                for pattern; do
                    for file in {self.states}/$pattern; do
                        [ -e $file ] && echo "$(basename $file) loaded active running A description"
                    done
                done
                true
            elif [ "$*" = "start broken.service" ]; then
                echo "Job for broken.service failed." >&2
                exit 1
            else
                echo "$*" >> {self.log}
            fi""",
        )

    def set(self, unit: str, active: str, enabled: str, outdated: str = "no") -> None:
        """Set the state of a unit."""
        state = f"ActiveState={active}\nUnitFileState={enabled}\nNeedDaemonReload={outdated}\n"
        (self.states / unit).write_text(state)

    @property
    def commands(self) -> list[str]:
        """The commands that change something."""
        return self.log.read_text().splitlines()


@pytest.fixture
def systemd(tmp_path: Path, fake_command: FakeCommand, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """A systemctl without units, and an empty directory of units."""
    units = tmp_path / "units"
    units.mkdir()
    monkeypatch.setattr(unit_set, "UNITS", units)
    return Systemd(tmp_path, fake_command)


@pytest.mark.parametrize(
    ("active", "enabled", "changed", "commands"),
    [
        ("active", "enabled", False, []),
        ("active", "enabled", True, ["restart"]),
        ("active", "static", False, []),
        ("activating", "enabled", True, ["restart"]),
        ("active", "disabled", False, ["enable"]),
        ("inactive", "disabled", False, ["enable", "start"]),
        ("failed", "enabled", True, ["start"]),
    ],
)
def test_an_enabled_unit(
    systemd: Systemd, run_module: RunModule, active: str, enabled: str, changed: bool, commands: list[str]
) -> None:
    systemd.set("a.service", active, enabled)
    result = run_module(
        unit_set,
        units=[{"name": "a.service", "files": ["/etc/a", "/etc/shared"]}],
        changed_files=["/etc/a"] if changed else [],
    )
    assert result["commands"] == [f"{command} a.service" for command in commands]
    assert result["changed"] is bool(commands)
    reload = ["daemon-reload"] if changed else []
    assert systemd.commands == [*reload, *(f"{command} a.service" for command in commands)]


def test_a_file_of_another_unit_restarts_nothing(systemd: Systemd, run_module: RunModule) -> None:
    systemd.set("a.service", "active", "enabled")
    units = [{"name": "a.service", "files": ["/etc/a"]}]
    assert run_module(unit_set, units=units, changed_files=["/etc/b"])["commands"] == []


def test_a_unit_that_an_interrupted_run_has_written_is_restarted(
    systemd: Systemd, run_module: RunModule
) -> None:
    systemd.set("a.service", "active", "enabled", outdated="yes")
    systemd.set("b.service", "active", "enabled")
    assert run_module(unit_set, units=[{"name": "a.service"}, {"name": "b.service"}])["changed"]
    assert systemd.commands == ["daemon-reload", "restart a.service"]


def test_a_disabled_unit_stops_before_systemd_forgets_it(systemd: Systemd, run_module: RunModule) -> None:
    systemd.set("a.service", "active", "enabled")
    wants = unit_set.UNITS / "multi-user.target.wants"
    wants.mkdir()
    (wants / "a.service").symlink_to("/nonexistent")
    units = [{"name": "a.service", "enabled": False}]
    result = run_module(unit_set, units=units, changed_files=["/etc/systemd/system/a.service"])
    assert result["commands"] == ["stop a.service", "disable a.service"]
    assert systemd.commands == ["stop a.service", "disable a.service", "daemon-reload"]


def test_a_disabled_unit_that_does_not_run_needs_nothing(systemd: Systemd, run_module: RunModule) -> None:
    systemd.set("a.service", "inactive", "")
    assert run_module(unit_set, units=[{"name": "a.service", "enabled": False}])["changed"] is False
    assert systemd.commands == []


def test_a_unit_whose_file_was_removed_is_stopped(systemd: Systemd, run_module: RunModule) -> None:
    systemd.set("gone.timer", "active", "enabled")
    (unit_set.UNITS / "kept.service").touch()
    changed = [str(unit_set.UNITS / name) for name in ("gone.timer", "kept.service", "a.service.d/x.conf")]
    assert run_module(unit_set, units=[], changed_files=changed)["commands"] == ["stop gone.timer"]
    assert systemd.commands == ["stop gone.timer", "daemon-reload"]


def enable(unit: str) -> None:
    """Link a unit as systemctl enable does."""
    wants = unit_set.UNITS / "timers.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / unit).symlink_to(f"/etc/systemd/system/{unit}")


def test_purge_stops_loaded_and_enabled_units_that_are_not_listed(
    systemd: Systemd, run_module: RunModule
) -> None:
    for name in ("api-job-kept.timer", "api-job-old.timer", "api.service"):
        systemd.set(name, "active", "enabled")
    # An interrupted run has removed the file of api-job-left.timer, but not the link that enables it.
    for name in ("api-job-left.timer", "other.timer"):
        enable(name)
    result = run_module(unit_set, units=[{"name": "api-job-kept.timer"}], purge=["api-job-*.timer"])
    assert sorted(result["commands"]) == ["disable api-job-left.timer", "stop api-job-old.timer"]


@pytest.mark.parametrize(
    ("active", "enabled", "commands"),
    [
        ("inactive", False, []),
        # Its timer has just started it.
        ("activating", False, []),
        # It was a worker before it got a schedule.
        ("active", True, ["stop a.service", "disable a.service"]),
    ],
)
def test_a_triggered_unit_is_left_to_its_trigger(
    systemd: Systemd, run_module: RunModule, active: str, enabled: bool, commands: list[str]
) -> None:
    systemd.set("a.service", active, "enabled" if enabled else "static")
    if enabled:
        enable("a.service")
    units = [{"name": "a.service", "triggered": True, "files": ["/etc/a"]}]
    result = run_module(unit_set, units=units, changed_files=["/etc/a"])
    assert result["commands"] == commands


def test_one_command_serves_several_units(systemd: Systemd, run_module: RunModule) -> None:
    for name in ("a.service", "b.service"):
        systemd.set(name, "inactive", "enabled")
    run_module(unit_set, units=[{"name": "a.service"}, {"name": "b.service"}])
    assert systemd.commands == ["start a.service b.service"]


def test_check_mode_changes_nothing(systemd: Systemd, run_module: RunModule) -> None:
    systemd.set("a.service", "inactive", "disabled")
    result = run_module(unit_set, check=True, units=[{"name": "a.service"}], changed_files=["/etc/a"])
    assert result["commands"] == ["enable a.service", "start a.service"]
    assert systemd.commands == []


def test_a_refusal_ends_the_task_with_systemds_reason(systemd: Systemd, run_module: RunModule) -> None:
    systemd.set("broken.service", "inactive", "enabled")
    result: dict[str, Any] = run_module(unit_set, units=[{"name": "broken.service"}])
    assert result["failed"]
    assert result["msg"] == "systemctl start broken.service failed: Job for broken.service failed."
