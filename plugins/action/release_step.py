"""Run one command of SERVICE-release on a host and return its result."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.plugin_utils.commands import run_command

DOCUMENTATION = r"""
name: release_step
short_description: Run one step of a release on a host
description:
  - Runs C(SERVICE-release STEP) through the connection. A module's transfer takes longer than most steps.
  - Returns the command's JSON. A command that fails and a host that cannot be reached are ordinary failures.
author: Fastmetal
options:
  service: {type: str, required: true, description: "The service."}
  step:
    type: str
    required: true
    choices: [lock, migrate, switch, promote, rollback]
    description: "The command."
  release: {type: str, default: "", description: "The release, for the steps that have one."}
  metadata: {type: dict, default: {}, description: "Who changes what, for the lock and the history."}
  options: {type: dict, default: {}, description: "Further options: true is a flag, a dictionary the input."}
"""

EXAMPLES = r"""
- name: Switch to a release as a canary
  fastmetal.metal.release_step:
    service: api
    step: switch
    release: 1.0-0123456789ab
    options: {promote-within: 120, force: true}
"""

STEPS = ["lock", "migrate", "switch", "promote", "rollback"]
NOT_FOUND = 127


def command_line(args: Mapping[str, Any]) -> list[str]:
    """Return the command of a step."""
    command = [f"/usr/local/sbin/{args['service']}-release", args["step"]]
    command += [args["release"]] if args["release"] else []
    command += ["--metadata", json.dumps(args["metadata"])]
    for name, value in args["options"].items():
        if value is True or isinstance(value, dict):
            command.append(f"--{name}")
        elif value is not False:
            command.append(f"--{name}={value}")
    return command


def input_of(args: Mapping[str, Any]) -> bytes:
    """Return the input of the command: the dictionary among its options, or an empty line."""
    given = [value for value in args["options"].values() if isinstance(value, dict)]
    return json.dumps(given[0]).encode() if given else b"\n"


def outcome(program: str, done: Mapping[str, Any]) -> dict[str, Any]:
    """Return the task's result for what the command has returned."""
    if done["rc"] == NOT_FOUND:
        return {"failed": True, "msg": f"{program} is not on this host: run site.yml first"}
    if done["rc"]:
        return {"failed": True, "msg": done["stderr"].strip() or done["stdout"].strip()}
    return {"changed": False, **json.loads(done["stdout"])}


class ActionModule(ActionBase):
    """Action `release_step`."""

    _supports_check_mode = False
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run the step."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "service": {"type": "str", "required": True},
                "step": {"type": "str", "required": True, "choices": STEPS},
                "release": {"type": "str", "default": ""},
                "metadata": {"type": "dict", "default": {}},
                "options": {"type": "dict", "default": {}},
            }
        )
        command = command_line(args)
        try:
            done = run_command(self, shlex.join(command), input_of(args))
        except AnsibleConnectionFailure as error:
            # An ordinary failure, so that the run rolls back every host that it can reach.
            return result | {"failed": True, "msg": f"The host cannot be reached: {error}"}
        return result | outcome(command[0], done)
