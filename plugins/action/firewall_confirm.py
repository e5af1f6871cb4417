"""Keep the firewall's rules if the host can be reached by a new connection under them."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: firewall_confirm
short_description: Keep the new rules of the firewall
description:
  - Opens a second connection beside the shared one of this run.
  - If it fails, the host rolls back to its previous rules.
author: Fastmetal
options:
  program: {type: path, required: true, description: "The program that the role firewall installs."}
  seconds: {type: int, required: true, description: "Seconds after which the host rolls back."}
"""

EXAMPLES = r"""
- name: Keep the rules
  fastmetal.metal.firewall_confirm:
    program: /usr/local/sbin/fastmetal-firewall
    seconds: 60
"""

# An SSH connection of its own: an existing one would pass under any rules.
ALONE = "-o ControlMaster=no -o ControlPath=none"


class ActionModule(ActionBase):
    """Action `firewall_confirm`."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Return whether the rules were kept; fail with what to do otherwise."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._connection.transport == "ssh":
            # Of an option that is given twice, ssh takes the first; these arguments come before all others.
            given = self._connection.get_option("ssh_args") or ""
            self._connection.set_option("ssh_args", f"{ALONE} {given}".strip())
        try:
            done = self._low_level_execute_command(f"{self._task.args['program']} confirm")
        except AnsibleConnectionFailure as error:
            reason = str(error).strip().splitlines()[-1].rpartition("over ssh: ")[2].rstrip(".")
            advice = (
                f"A second connection could not be opened under the new rules ({reason})."
                f" The host rolls back to its previous rules within {self._task.args['seconds']} seconds:"
                " check the ports and `from` of firewall_rules.ssh."
            )
            return result | {"failed": True, "msg": advice}
        if done["rc"]:
            return result | {"failed": True, "msg": done["stderr"].strip() or done["stdout"].strip()}
        return result | {"changed": True}
