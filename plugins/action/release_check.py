"""Check a release through every edge, from the control node and over TLS."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: release_check
short_description: Check a release through every edge
description:
  - Sends the requests of the check from the control node to port 443 of each edge, one edge after the other.
  - A host runs the same check on the service's socket (C(SERVICE-release switch --check)).
author: Fastmetal
options:
  edges: {type: dict, required: true, description: "Addresses of edges, each with the name that clients use."}
  release: {type: str, required: true, description: "The release that has to answer."}
  check: {type: dict, required: true, description: "C(header), C(ca) and C(requests) of the check."}
  token_file: {type: str, default: "", description: "File on the host with a bearer token; empty sends none."}
"""

EXAMPLES = r"""
- name: Check the release through each edge
  fastmetal.metal.release_check:
    edges: {192.0.2.1: www.example.com}
    release: 1.0-0123456789ab
    check: {header: X-Release, ca: "", requests: [{path: /health/ready}]}
"""

# The program that a host runs for its own socket.
_spec = importlib.util.spec_from_file_location(
    "release_check_requests", Path(__file__).parents[2] / "roles/app/files/release/check.py"
)
if _spec is None or _spec.loader is None:
    raise AnsibleError("roles/app/files/release/check.py is missing: restore it from the repository.")
check = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check)


class ActionModule(ActionBase):
    """Action `release_check`."""

    _supports_check_mode = False

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send the requests to each edge in turn."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "edges": {"type": "dict", "required": True},
                "release": {"type": "str", "required": True},
                "check": {"type": "dict", "required": True},
                "token_file": {"type": "str", "default": ""},
            }
        )
        token = ""
        if args["token_file"]:
            # Read here, so that the token appears in no result, variable or log.
            show = f"cat {shlex.quote(args['token_file'])}"
            try:
                done = self._low_level_execute_command(show, in_data=b"\n")
            except AnsibleConnectionFailure as error:
                # An ordinary failure, so that the hosts roll back.
                return result | {"failed": True, "msg": f"The host cannot be reached: {error}"}
            if done["rc"]:
                return result | {
                    "failed": True,
                    "msg": f"There is no token for the check: {done['stderr'].strip()}",
                }
            token = done["stdout"].strip()
        for edge, name in args["edges"].items():
            if wrong := check.fault(edge, name, args["release"], token, args["check"]):
                return result | {
                    "failed": True,
                    "msg": f"The check from outside failed on {edge}: {wrong}.",
                }
        return result | {"changed": False}
