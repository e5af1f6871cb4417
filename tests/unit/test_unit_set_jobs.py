"""unit_set stops units that are no longer listed, and leaves those that a timer starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plugins.modules import unit_set


@pytest.fixture(autouse=True)
def _units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of units with an enabled one."""
    wants = tmp_path / "api-workers.target.wants"
    wants.mkdir()
    (wants / "api-job-old.service").symlink_to("/nowhere")
    monkeypatch.setattr(unit_set, "UNITS", tmp_path)


def unit(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "enabled": True, "files": [], "triggered": False, **more}


def test_unlisted_units_are_found_by_what_is_loaded_or_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "api-job-mail.service loaded active running x\napi-job-gone.timer loaded active waiting x\n"
    monkeypatch.setattr(unit_set, "systemctl", lambda *_: listed)
    found = unit_set.unlisted_units(["api-job-*"], [unit("api-job-mail.service")])
    assert [(one["name"], one["enabled"]) for one in found] == [
        ("api-job-gone.timer", False),
        ("api-job-old.service", False),
    ]
    assert unit_set.unlisted_units([], []) == []


@pytest.mark.parametrize("state", ["inactive", "active", "activating"])
def test_a_triggered_unit_is_left_as_it_is(state: str) -> None:
    triggered = unit("api-job-purge.service", triggered=True, files=["/x"])
    assert unit_set.commands_for(triggered, {"ActiveState": state, "UnitFileState": "static"}, {"/x"}) == []


def test_a_triggered_unit_that_is_enabled_is_stopped_and_disabled() -> None:
    triggered = unit("api-job-old.service", triggered=True)
    state = {"ActiveState": "active", "UnitFileState": "enabled"}
    assert unit_set.commands_for(triggered, state, set()) == ["stop", "disable"]


def test_a_worker_that_was_stopped_by_hand_is_started() -> None:
    state = {"ActiveState": "inactive", "UnitFileState": "enabled"}
    assert unit_set.commands_for(unit("api-job-mail.service"), state, set()) == ["start"]
