"""Render templates and read files on the control node for the module `file_set`, all in one task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

SOURCES = ("content", "template", "file")
# Keys that the module does not know.
OWN_KEYS = {"template", "file", "variables", "present", "units"}


class ActionModule(ActionBase):
    """Action `file_set`; the module documents its arguments."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Return the result of the module, which gets the content of every file."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        # A lookup would copy all variables deeply for each template.
        variables = {"ansible_managed": "Ansible managed", **task_vars}
        files = []
        for entry in self._task.args.get("files") or []:
            content = self.content(entry, variables) if boolean(entry.get("present", True)) else ""
            files.append({key: entry[key] for key in entry if key not in OWN_KEYS} | {"content": content})
        arguments = {**self._task.args, "files": files, "owner": self.owner(task_vars)}
        result |= self._execute_module(module_args=arguments, task_vars=task_vars)
        return result

    def owner(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mark of the task's role; empty outside of a role and an environment."""
        if self._task._role is None or not {"environment_name", "service_name"} <= variables.keys():
            return {}
        names = {"environment": variables["environment_name"], "services": [variables["service_name"]]}
        return {"role": self._task._role.get_name().rpartition(".")[2], **self._templar.template(names)}

    def content(self, entry: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
        """Return what the file of an entry holds."""
        given = [source for source in SOURCES if source in entry]
        if len(given) != 1:
            found = " and ".join(given) or "no source"
            raise AnsibleActionFail(f"{entry.get('path')} has {found}: give one of {', '.join(SOURCES)}.")
        if "content" in entry:
            return str(entry["content"])
        if "file" in entry:
            return Path(self._find_needle("files", entry["file"])).read_text(encoding="utf-8")
        source = self._find_needle("templates", entry["template"])
        searched = variables.get("ansible_search_path") or [self._loader.get_basedir()]
        folders = [folder for path in searched for folder in (f"{path}/templates", path)]
        templar = self._templar.copy_with_new_env(
            searchpath=[str(Path(source).parent), *folders],
            available_variables={**variables, **entry.get("variables", {})},
        )
        text = trust_as_template(self._loader.get_text_file_contents(source))
        return str(templar.template(text, escape_backslashes=False))
