"""Gather facts and what preflight judges on a host, and report an unreachable host as a result.

Ansible itself would drop an unreachable host from the play, before preflight can say what to do.
"""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Action `probe_host`: the arguments of `setup`, and `directories` for the free space."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Return the facts and host_probe's result, or unreachable_because or unusable with the reason."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        probe = {"directories": arguments.pop("directories"), "services": self.services(task_vars)}
        try:
            gathered: dict[str, Any] = self._execute_module(
                "ansible.builtin.setup", arguments, task_vars=task_vars
            )
            if gathered.get("failed"):
                return result | {"unusable": gathered.get("module_stderr") or gathered.get("msg", "")}
            found: dict[str, Any] = self._execute_module(
                "fastmetal.metal.host_probe", probe, task_vars=task_vars
            )
        except AnsibleConnectionFailure as error:
            return result | {"unreachable_because": str(error)}
        except AnsibleError as error:  # Such as a missing password for sudo.
            return result | {"unusable": str(error)}
        if found.get("failed"):
            return result | {"unusable": found.get("module_stderr") or found.get("msg", "")}
        # Lets roles skip apt tasks: one that installs nothing takes as long as any other task.
        packages_facts = {
            "ansible_installed_packages": found.pop("packages"),
            "ansible_packages_interrupted": found.pop("interrupted"),
        }
        return result | found | {"ansible_facts": gathered["ansible_facts"] | packages_facts}

    def services(self, variables: dict[str, Any]) -> list[str]:
        """Return the names of the host's services; a value that cannot be evaluated is refused later."""
        try:
            return list(self._templar.template(variables.get("preflight_services", [])))
        except (AnsibleError, TypeError):
            return []
