"""Run the host's own SERVICE-release command, and report in its words.

It is one command on the host, so it goes through the connection as it is: a module would first have to carry
itself and its interpreter there, which takes longer than most steps.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

NOT_FOUND = 127


class ActionModule(ActionBase):
    """Options: service, step, release (where the step names one), about, options (true means a flag)."""

    _supports_check_mode = False
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Carry out one step of a release."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "service": {"type": "str", "required": True},
                "step": {
                    "type": "str",
                    "required": True,
                    "choices": ["lock", "migrate", "switch", "confirm", "return"],
                },
                "release": {"type": "str", "default": ""},
                "about": {"type": "dict", "default": {}},
                "options": {"type": "dict", "default": {}},
            }
        )
        command = [f"/usr/local/sbin/{args['service']}-release", args["step"]]
        command += [args["release"]] if args["release"] else []
        command += ["--about", json.dumps(args["about"])]
        for name, value in args["options"].items():
            if value is True:
                command.append(f"--{name}")
            elif value is not False:
                command.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
        try:
            # Something to read keeps SSH from a terminal, which would mix errors with answers.
            done = self._low_level_execute_command(shlex.join(command), in_data=b"\n")
        except AnsibleConnectionFailure as error:
            # A failure like any other: the run returns every host that it can reach.
            return result | {"failed": True, "msg": f"The host cannot be reached: {error}"}
        if done["rc"] == NOT_FOUND:
            return result | {"failed": True, "msg": f"{command[0]} is not on this host: run site.yml first"}
        if done["rc"]:
            return result | {"failed": True, "msg": done["stderr"].strip() or done["stdout"].strip()}
        return result | {"changed": False, **json.loads(done["stdout"])}
