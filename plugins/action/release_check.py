"""Check a release through every edge over TLS, from a host: the control node may reach hosts by SSH only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.plugin_utils.commands import run_command

DOCUMENTATION = r"""
name: release_check
short_description: Check a release through every edge
description:
  - Sends the requests of the check from the task's host to port 443 of each edge, one edge after the other.
  - A host runs the same check on the service's socket (C(SERVICE-release switch --check)).
author: Fastmetal
options:
  edges: {type: dict, required: true, description: "Addresses of edges, each with the name that clients use."}
  release: {type: str, default: "", description: "The release that has to answer; empty accepts any."}
  check: {type: dict, required: true, description: "C(header), C(ca) and C(requests) of the check."}
  token: {type: str, default: "", description: "A bearer token; empty sends none."}
  token_file: {type: str, default: "", description: "File on the host with a bearer token."}
"""

EXAMPLES = r"""
- name: Check the release through each edge
  fastmetal.metal.release_check:
    edges: {192.0.2.1: www.example.com}
    release: 1.0-0123456789ab
    check: {header: X-Release, ca: "", requests: [{path: /health/ready}]}
"""

# The program that a host runs for its own socket. Python reads it from its input, with the token.
PROGRAM = Path(__file__).parents[2] / "roles/app/files/release/check.py"


class ActionModule(ActionBase):
    """Action `release_check`."""

    _supports_check_mode = False
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send the requests to each edge in turn."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "edges": {"type": "dict", "required": True},
                "release": {"type": "str", "default": ""},
                "check": {"type": "dict", "required": True},
                "token": {"type": "str", "default": "", "no_log": True},
                "token_file": {"type": "str", "default": ""},
            }
        )
        call = f"print(fault_of_edges(**json.loads({json.dumps(args)!r})), end='')"
        program = f"{PROGRAM.read_text(encoding='utf-8')}\n\n{call}\n"
        try:
            done = run_command(self, "/usr/bin/python3 -", program.encode())
        except AnsibleConnectionFailure as error:
            # An ordinary failure, so that the hosts roll back.
            return result | {"failed": True, "msg": f"The host cannot be reached: {error}"}
        if wrong := done["stdout"].strip() or (
            done["rc"] and (done["stderr"].strip().splitlines() or ["?"])[-1]
        ):
            return result | {"failed": True, "msg": f"The check through the edge failed: {wrong}."}
        return result | {"changed": False}
