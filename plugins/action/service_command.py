"""Run a command in a service's sandbox on the host, and show its output."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.plugin_utils.commands import run_command

DOCUMENTATION = r"""
name: service_command
short_description: Run a command in a service's sandbox and show its output
description:
  - Runs C(SERVICE-run COMMAND) through the connection. The host's journal keeps the operator and the command.
  - Shows standard output and errors as they are. A command that fails fails the task.
author: Fastmetal
options:
  service: {type: str, required: true, description: "The service."}
  command: {type: str, required: true, description: "Words as in a shell; `sh -c '…'` runs a shell."}
  owner: {type: bool, default: false, description: "Run it as the owner of the database."}
"""

EXAMPLES = r"""
- name: Remove expired orders
  fastmetal.metal.service_command:
    service: shop
    command: python -m shop.cleanup --days 30
"""

NOT_FOUND = 127


def command_line(args: Mapping[str, Any]) -> list[str]:
    """Return the command of the host."""
    operator = (
        f"FASTMETAL_OPERATOR={os.environ.get('SUDO_USER') or getpass.getuser()} on {socket.gethostname()}"
    )
    owner = ["--owner"] if args["owner"] else []
    return ["env", operator, f"/usr/local/sbin/{args['service']}-run", *owner, *shlex.split(args["command"])]


class ActionModule(ActionBase):
    """Action `service_command`."""

    _supports_check_mode = False
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run the command."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "service": {"type": "str", "required": True},
                "command": {"type": "str", "required": True},
                "owner": {"type": "bool", "default": False},
            }
        )
        if not args["command"].strip():
            return result | {"failed": True, "msg": 'Give the command: -e "command=python -m shop.cleanup".'}
        try:
            words = command_line(args)
        except ValueError as error:
            return result | {"failed": True, "msg": f"The command has an open quote: {error}."}
        try:
            done = run_command(self, shlex.join(words))
        except AnsibleConnectionFailure as error:
            return result | {"failed": True, "msg": f"The host cannot be reached: {error}"}
        for text in (done["stdout"], done["stderr"]):
            if text.strip():
                self._display.display(text.rstrip("\n"))
        if done["rc"]:
            reason = "there is no such service on this host: run site.yml first"
            said = reason if done["rc"] == NOT_FOUND else f"it ended with status {done['rc']}"
            return result | {"failed": True, "msg": f"`{args['command']}` failed: {said}."}
        return result | {"changed": True}
