"""Bring a standalone CPython to a host that lacks it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.plugin_utils.commands import run_command
from ansible_collections.fastmetal.metal.plugins.plugin_utils.standalone_python import PythonError, find


class ActionModule(ActionBase):
    """Action `release_python`; the module documents its options."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Find the archive on the control node; with `directory`, copy what the host lacks and install it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "python": {"type": "str", "required": True},
                "archive": {"type": "str", "default": ""},
                "checksum": {"type": "str", "default": ""},
                "architecture": {"type": "str", "required": True},
                "cache": {"type": "path", "required": True},
                "directory": {"type": "str", "default": ""},
            }
        )
        cache = Path(args["cache"])
        try:
            python = find(args["python"], args["archive"], args["checksum"], args["architecture"], cache)
        except PythonError as error:
            if args["directory"]:
                return result | {"failed": True, "msg": f"{error}."}
            # Preflight reports it with all other faults, which it judges by the version that was asked for.
            return result | {"changed": False, "fault": f"{error}.", "version": args["python"], "id": ""}
        if not args["directory"]:
            return result | {"changed": False, **python}
        home = PurePosixPath(args["directory"]) / python["id"]
        interpreter = str(home / "bin/python3")
        try:
            return result | {**python, "interpreter": interpreter, **self.install(home, python, task_vars)}
        except AnsibleConnectionFailure as error:
            # An ordinary failure, so that the run rolls back every host that it can reach.
            return result | {"failed": True, "msg": f"The host cannot be reached: {error}"}

    def install(self, home: PurePosixPath, python: Mapping[str, Any], task_vars: Any) -> dict[str, Any]:
        """Return whether the host lacked it, or the module's failure."""
        place = shlex.quote(str(home))
        # A new time keeps it from being removed before the release that needs it is installed.
        if run_command(self, f"test -e {place}/bin/python3 && touch {place}")["rc"] == 0:
            return {"changed": False}
        if self._task.check_mode:
            return {"changed": True}
        path = home.parent.parent / ".python.tar.gz"
        folders = shlex.join(["mkdir", "-p", str(home.parent)])
        write = f"{folders} && umask 077 && cat > {shlex.quote(str(path))}"
        done = run_command(self, write, Path(python["archive"]).read_bytes())
        if done["rc"]:
            return {"failed": True, "msg": f"{path} cannot be written: {done['stderr'].strip()}."}
        options = {
            "archive": str(path),
            "checksum": python["checksum"],
            "version": python["version"],
            "directory": str(home),
        }
        answer: dict[str, Any] = self._execute_module(
            "fastmetal.metal.release_python", options, task_vars=task_vars
        )
        return {name: answer[name] for name in ("changed", "failed", "msg") if name in answer}
