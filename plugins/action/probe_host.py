"""Gather facts, packages, free space and listeners of a host, and report an unreachable host as a result.

Ansible itself would drop an unreachable host from the play, before preflight can say what to do.
"""

from __future__ import annotations

import shlex
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

NEXT = "--- next ---"
# Ansible's apt module writes this to keep services from starting; a killed run leaves it behind.
GUARD_FILE = "/usr/sbin/policy-rc.d"
GUARD = r"#!/bin/sh\nexit 101\n"


class ActionModule(ActionBase):
    """Action `probe_host`: the arguments of `setup`, and `directories` for the free space."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Return the facts, free_mb and listeners, or unreachable_because or unusable with the reason."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        directories = shlex.join(arguments.pop("directories"))
        try:
            gathered = self._execute_module("ansible.builtin.setup", arguments, task_vars=task_vars)
            if gathered.get("failed"):
                return result | {"unusable": gathered.get("module_stderr") or gathered.get("msg", "")}
            output = self._low_level_execute_command(
                f"df --block-size=1M --output=avail {directories}; echo '{NEXT}';"
                f" ss --no-header -l --tcp --numeric --processes; echo '{NEXT}';"
                f" dpkg-query --show --showformat '${{db:Status-Abbrev}}${{Package}}\\n'; echo '{NEXT}';"
                f" ls -A /var/lib/dpkg/updates;"
                f" printf '{GUARD}' | cmp --silent - {GUARD_FILE} && echo guarded"
            )
        except AnsibleConnectionFailure as error:
            return result | {"unreachable_because": str(error)}
        space, listeners, packages, interrupted = (
            part.strip().splitlines() for part in output["stdout"].split(NEXT)
        )
        # Lets roles skip apt tasks: one that installs nothing takes as long as any other task.
        installed = [line.removeprefix("ii ") for line in packages if line.startswith("ii ")]
        packages_facts = {
            "ansible_installed_packages": installed,
            "ansible_packages_interrupted": bool(interrupted),
        }
        return result | {
            "ansible_facts": gathered["ansible_facts"] | packages_facts,
            "free_mb": min((int(x) for x in space[1:]), default=None),
            "listeners": listeners,
        }
