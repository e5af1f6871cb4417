"""Check every variable of a host against the roles' argument specs, strictly, before anything runs.

Ansible's own validation accepts a port of 99999999, a list from "a,b" and any misspelt name.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

# Names that Ansible itself puts into a host's variables.
MAGIC = {
    *("ansible_*", "__*", "molecule_*", "group_names", "groups", "hostvars", "inventory_*", "omit"),
    *("play_hosts", "playbook_dir", "role_name", "role_names", "role_path", "environment", "vars", "port", "item"),
}
# Bounds by the ending of a name: lowest and highest value.
BOUNDS = {
    "_port": (1, 65535),
    "_percent": (1, 100),
    "_mb": (1, 2**31),
    "_days": (1, 36500),
    "_seconds": (0, 2**31),
    "_connections": (1, 262143),
    "_workers": (1, 1024),
}
WORDS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
    "path": "a path",
}
TRUTH = {"true", "false", "yes", "no", "on", "off", "0", "1"}


def fits(kind: str, value: Any) -> bool:
    """Tell whether a value is of a spec's type; strings pass for scalars, as `-e` knows no others."""
    text = isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool) or (text and value.lower() in TRUTH)
    if kind == "int":
        return (isinstance(value, int) and not isinstance(value, bool)) or (
            text and re.fullmatch(r"-?\d+", value) is not None
        )
    if kind == "float":
        return fits("int", value) or isinstance(value, float) or (text and re.fullmatch(r"-?\d+\.\d+", value) is not None)
    if kind in ("str", "path"):
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    if kind == "list":
        return isinstance(value, Sequence) and not text
    if kind == "dict":
        return isinstance(value, Mapping)
    return True


def faults(name: str, option: Mapping[str, Any], value: Any) -> Iterator[str]:
    """Yield a sentence for each way in which a value breaks its option's spec."""
    kind = option.get("type", "str")
    shown = "" if option.get("no_log") else f", not {value!r}"
    if value is None:
        if option.get("required"):
            yield f"{name} is empty: set it to {WORDS.get(kind, kind)}"
        return
    if not fits(kind, value):
        yield f"{name} must be {WORDS.get(kind, kind)}{shown}"
        return
    choices = option.get("choices")
    if choices and kind != "list" and str(value) not in [str(choice) for choice in choices]:
        yield f"{name} must be one of {', '.join(map(str, choices))}{shown}"
    if kind == "int":
        for ending, (lowest, highest) in BOUNDS.items():
            if (name.endswith(ending) or name.endswith("." + ending[1:])) and not lowest <= int(value) <= highest:
                yield f"{name} must be between {lowest} and {highest}{shown}"
    if kind == "list":
        element = {"type": option.get("elements", "raw"), "options": option.get("options")}
        if choices:
            element["choices"] = choices
        for index, item in enumerate(value):
            yield from faults(f"{name}[{index}]", element, item)
    if kind == "dict" and option.get("options"):
        options = option["options"]
        for key in value:
            if key not in options:
                yield f"{name}.{key} is unknown{suggestion(str(key), options)}"
        for key, inner in options.items():
            if key in value:
                yield from faults(f"{name}.{key}", inner, value[key])
            elif inner.get("required"):
                yield f"{name}.{key} is missing"


def suggestion(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f": did you mean {close[0]}?" if close else ""


def load_specs(roles: Path) -> dict[str, dict[str, Any]]:
    """Read {role: {option: spec}} of every role beside this one."""
    specs = {}
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        specs[path.parts[-3]] = yaml.safe_load(path.read_text())["argument_specs"]["main"].get("options", {})
    return specs


class ActionModule(ActionBase):
    """Action `check_variables`: roles (list), the roles this host gets."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        host = task_vars["inventory_hostname"]
        names = set(task_vars["hostvars"][host])
        specs = load_specs(Path(__file__).resolve().parents[2])
        known = {name for options in specs.values() for name in options}
        patterns = MAGIC | set(arguments.get("ignore", []))
        problems = [
            f"{name} is unknown{suggestion(name, known) or ': remove it, or list it in preflight_own_variables'}"
            for name in sorted(names - known)
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
        for role in arguments["roles"]:
            for name, option in specs.get(role, {}).items():
                if name not in names:
                    if option.get("required"):
                        secret = SECRETS if "vault" in self.purpose(option) else ""
                        problems.append(f"{name} is not set: {secret or self.purpose(option)}")
                    continue
                try:
                    value = self._templar.template(task_vars[name])
                except AnsibleError as error:
                    missing = re.search(r"'(\w+)' is undefined", str(error))
                    reason = f"needs {missing[1]}, which is not set" if missing else f"cannot be read: {error}"
                    problems.append(f"{name} {reason}" + (f": {SECRETS}" if missing and missing[1].startswith("secret_") else ""))
                else:
                    problems.extend(faults(name, option, value))
        if problems:
            result.update(failed=True, msg=f"{host}: " + "; ".join(dict.fromkeys(problems)) + ".")
        return result

    @staticmethod
    def purpose(option: Mapping[str, Any]) -> str:
        text = option.get("description", "")
        return str(text if isinstance(text, str) else text[0]).rstrip(".")


SECRETS = "make the environment's secrets with `make secrets ENV=<environment>`"
