"""Fail with one sentence for each fault of a role's variables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import Templar

DOCUMENTATION = r"""
name: refuse
short_description: Fail with one sentence for each fault
description:
  - Evaluates the conditions of a list of faults and fails with the sentences of all that hold.
  - Runs on the control node; the host is not contacted.
author: Fastmetal
options:
  faults:
    description:
      - Name of a variable, not its value, so that a sentence is templated only if its condition holds.
      - The variable is a list of dictionaries with C(when), a condition as in a task, and C(say), a sentence.
      - A condition that cannot be evaluated is skipped once a fault was found, which is the likely cause.
    type: str
    required: true
"""

EXAMPLES = r"""
# vars/main.yml:
# __nginx_faults:
#   - when: nginx_edge and not nginx_server_names
#     say: "nginx_server_names is empty: list the host names of the public site."
- name: Refuse variables that cannot work
  fastmetal.metal.refuse:
    faults: __nginx_faults
"""


def sentences(faults: Iterable[Mapping[str, str]], templar: Templar) -> Iterator[str]:
    """Yield the sentence of each fault whose condition holds."""
    found = False
    for fault in faults:
        try:
            holds = templar.evaluate_conditional(fault["when"])
        except AnsibleError:
            if found:
                continue
            raise
        if holds:
            found = True
            yield str(templar.template(fault["say"])).strip()


class ActionModule(ActionBase):
    """Action `refuse`."""

    _requires_connection = False
    _VALID_ARGS = frozenset({"faults"})

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Fail if a condition of the list holds."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        name = self._task.args.get("faults")
        if name not in task_vars:
            raise AnsibleActionFail(f"There is no variable {name}: name a list of faults.")
        faults = task_vars[name]
        # Lists that are put together out of others are templates themselves.
        faults = self._templar.template(faults) if isinstance(faults, str) else faults
        if found := list(sentences(faults, self._templar)):
            return result | {"failed": True, "msg": " ".join(found)}
        return result | {"changed": False}
