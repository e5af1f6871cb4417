"""One-off commands: the command on the host, and how the command line passes it."""

from __future__ import annotations

import importlib
from typing import Any
from unittest.mock import MagicMock, patch

import pytest

from plugins.action.service_command import ActionModule, command_line

callback = importlib.import_module("plugins.callback.command_line")
ARGUMENTS = {"service": "shop", "command": "python -m 'a b' --days=30", "owner": False}


@pytest.fixture(autouse=True)
def _operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ann")
    monkeypatch.setattr("socket.gethostname", lambda: "desk")


def run(done: dict[str, Any], **arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the task's result and what it displays, if the host returns this."""
    task = MagicMock(args=ARGUMENTS | arguments, async_val=0, check_mode=False)
    action = ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())
    with (
        patch.object(action, "validate_argument_spec", lambda _: (None, task.args)),
        patch.object(action, "_low_level_execute_command", side_effect=[done]),
        patch.object(action._display, "display") as display,
    ):
        result = action.run(task_vars={})
    return result, [call.args[0] for call in display.call_args_list]


def test_the_command_names_the_operator() -> None:
    program = ["env", "FASTMETAL_OPERATOR=ann on desk", "/usr/local/sbin/shop-run"]
    assert command_line(ARGUMENTS) == [*program, "python", "-m", "a b", "--days=30"]
    assert command_line(ARGUMENTS | {"owner": True})[3] == "--owner"


def test_the_output_is_shown_and_a_failure_named() -> None:
    result, shown = run({"rc": 0, "stdout": "3 rows\nmore\n", "stderr": "careful\n"})
    assert (result["changed"], shown) == (True, ["3 rows\nmore", "careful"])
    result, shown = run({"rc": 3, "stdout": "", "stderr": "Traceback"})
    assert result["msg"] == "`python -m 'a b' --days=30` failed: it ended with status 3."
    assert shown == ["Traceback"]
    assert "run site.yml first" in run({"rc": 127, "stdout": "", "stderr": ""})[0]["msg"]


@pytest.mark.parametrize(("command", "says"), [("", "Give the command"), ("a 'b", "has an open quote")])
def test_a_command_that_cannot_run_is_refused(command: str, says: str) -> None:
    assert says in run({}, command=command)[0]["msg"]


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ("command=python -m x --days=30 a=b", "python -m x --days=30 a=b"),
        ("command='python -m x'", "python -m x"),
        ("command=python -c 'print(1)'", "python -c 'print(1)'"),
    ],
)
def test_a_command_keeps_its_words(given: str, command: str) -> None:
    variables: dict[str, Any] = {"command": "python"}
    with patch.object(callback.context, "CLIARGS", {"extra_vars": ("service=shop", given)}):
        callback.CallbackModule.keep_command(MagicMock(), variables)
    assert variables == {"command": command}
