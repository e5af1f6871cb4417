"""Copy the archives of a release to a host that lacks them, and install them there.

The archives come from the control node, where release_artifact has built them. The dependencies' archive is
copied only if no release on the host has the same dependencies.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.plugin_utils.commands import run_command

LOOK = (
    "cd {releases} 2>/dev/null || exit 0;"
    " if grep -qsF {python} {release}/release.json; then echo installed;"
    " elif grep -qsF {dependencies} */release.json; then echo dependencies; fi"
)


class ActionModule(ActionBase):
    """Action `release_install`; the module documents its options."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Copy what the host lacks, and install the release."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "directory": {"type": "str", "required": True},
                "build": {"type": "dict", "required": True},
                "interpreter": {"type": "str", "default": ""},
            }
        )
        try:
            return result | self.install(PurePosixPath(args["directory"]), args, task_vars)
        except AnsibleConnectionFailure as error:
            # An ordinary failure, so that the run rolls back every host that it can reach.
            return result | {"failed": True, "msg": f"The host cannot be reached: {error}"}

    def install(self, directory: PurePosixPath, args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        """Return the module's result."""
        build = args["build"]
        dependencies = build["dependencies_id"]
        # As release_artifact writes them. A release of another Python does not start: it is installed anew.
        words = {
            "releases": directory.parent,
            "release": directory.name,
            "dependencies": f'"dependencies": "{dependencies}"',
            "python": f'"python": "{build["python"]}"',
        }
        look = LOOK.format(**{name: shlex.quote(str(word)) for name, word in words.items()})
        done = run_command(self, look)
        if done["rc"]:
            return {"failed": True, "msg": done["stderr"].strip() or done["stdout"].strip()}
        found = done["stdout"].strip()
        if found == "installed" or self._task.check_mode:
            return {"changed": found != "installed"}
        archives = []
        for name in ("app",) if found == "dependencies" else ("app", "dependencies"):
            content = Path(build[name]).read_bytes()
            path = directory.parent.parent / f".{name}.tar.gz"
            write = f"mkdir -p {shlex.quote(str(path.parent))} && umask 077 && cat > {shlex.quote(str(path))}"
            done = run_command(self, write, content)
            if done["rc"]:
                return {"failed": True, "msg": f"{path} cannot be written: {done['stderr'].strip()}."}
            archives.append({"path": str(path), "checksum": hashlib.sha256(content).hexdigest()})
        options = {**args, "build": {**build, "archives": archives}}
        answer: dict[str, Any] = self._execute_module(
            "fastmetal.metal.release_install", options, task_vars=task_vars
        )
        return answer
