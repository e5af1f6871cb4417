"""The action release_step: the command on the host, and its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
from ansible.errors import AnsibleConnectionFailure

from plugins.action.release_step import STEPS, ActionModule, command_line, input_of

PROGRAM = "/usr/local/sbin/api-release"
DONE = {"rc": 0, "stdout": '{"changed": true, "release": "1.1"}', "stderr": ""}


def run(done: Any, **arguments: Any) -> tuple[dict[str, Any], str]:
    """Return the task's result and the command, when the host returns or raises this."""
    task = MagicMock(args={"service": "api", "step": "lock", **arguments}, async_val=0, check_mode=False)
    action = ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())
    with (
        patch.object(action, "validate_argument_spec", lambda spec: (None, filled(spec, task.args))),
        patch.object(action, "_low_level_execute_command", side_effect=[done]) as execute,
    ):
        result = action.run(task_vars={})
    return result, execute.call_args.args[0]


def filled(spec: dict[str, dict[str, Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: arguments.get(name, option.get("default")) for name, option in spec.items()}


def test_options_become_flags_values_and_json() -> None:
    options = {"promote-within": 120, "force": True, "break": False, "check": {"requests": []}}
    metadata = {"run": "one"}
    arguments = {
        "service": "api",
        "step": "switch",
        "release": "1.1",
        "metadata": metadata,
        "options": options,
    }
    assert command_line(arguments) == [
        *(PROGRAM, "switch", "1.1", "--metadata", '{"run": "one"}'),
        *("--promote-within=120", "--force", "--check"),
    ]
    # Its requests may have passwords, which a command line would show.
    assert input_of(arguments) == b'{"requests": []}'


def test_every_word_is_quoted() -> None:
    result, command = run(DONE, metadata={"by": "o'neil; reboot"})
    assert command.partition(">&2; ")[2] == PROGRAM + """ lock --metadata '{"by": "o'"'"'neil; reboot"}'"""
    assert result["changed"]
    assert result["release"] == "1.1"


def test_a_result_without_changed_changes_nothing() -> None:
    result, _ = run({**DONE, "stdout": json.dumps({"release": "1.1"})})
    assert result["changed"] is False


@pytest.mark.parametrize(
    ("done", "message"),
    [
        ({"rc": 1, "stdout": "", "stderr": "1.1 is a canary.\n"}, "1.1 is a canary."),
        ({"rc": 1, "stdout": "only here\n", "stderr": ""}, "only here"),
        (
            {"rc": 127, "stdout": "", "stderr": "sh: not found"},
            f"{PROGRAM} is not on this host: run site.yml first",
        ),
        (AnsibleConnectionFailure("no route"), "The host cannot be reached: no route"),
    ],
)
def test_failures_are_ordinary_and_have_one_message(done: Any, message: str) -> None:
    result, _ = run(done)
    assert result["failed"]
    assert result["msg"] == message
    assert "unreachable" not in result


def test_every_step_is_a_command_of_the_program() -> None:
    program = (Path(__file__).parents[2] / "roles/app/files/release/__main__.py").read_text()
    assert all(f'        "{step}": "' in program for step in STEPS)
