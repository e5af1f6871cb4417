"""Ask every edge, from the control host through TLS, whether a release works, as the hosts ask themselves."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

# What a host runs for its own socket.
_spec = importlib.util.spec_from_file_location(
    "app_release_check", Path(__file__).parents[1] / "files/release/check.py"
)
if _spec is None or _spec.loader is None:
    raise AnsibleError("roles/app/files/release/check.py is missing: restore it from the repository.")
check = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check)


class ActionModule(ActionBase):
    """Options: edges (addresses with the names clients use), release, check, token_file (on the host)."""

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
            # Read here, so that it gets into no result, variable or log.
            show = f"cat {shlex.quote(args['token_file'])}"
            try:
                done = self._low_level_execute_command(show, in_data=b"\n")
            except AnsibleConnectionFailure as error:
                # A failure, as every other check's: the hosts then return.
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
