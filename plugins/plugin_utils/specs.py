"""The argument specs of the roles, and the judgement of a value against them.

Ansible's own validation accepts a port of 99999999, a list from "a,b" and any misspelt name.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.common.yaml import yaml_load
from ansible.module_utils.parsing.convert_bool import boolean

Specs = Mapping[str, Mapping[str, Any]]  # {role: {option: its spec}}

ROLES = Path(__file__).resolve().parents[2] / "roles"
# {ending of a name: (lowest, highest value)}
BOUNDS = {
    "_port": (1, 65535),
    "_percent": (1, 100),
    "_mb": (0, 2**31),
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
PYTHON_TYPES: dict[str, type | types.UnionType] = {
    "bool": bool,
    "int": int,
    "float": int | float,
    "str": str,
    "path": str,
    "dict": Mapping,
}
TRUTH = {"true", "false", "yes", "no", "on", "off", "0", "1"}


def fits(kind: str, value: Any) -> bool:
    """Return whether a value has a spec's type; a number or a flag in quotes has not."""
    if kind in PYTHON_TYPES:
        return isinstance(value, PYTHON_TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
    return kind != "list" or (isinstance(value, Sequence) and not isinstance(value, str))


def convert(kind: str, text: str) -> bool | int | float | str:
    """Return the flag or the number in a text, or the text: all values of `-e x=1` are strings."""
    if kind == "bool" and text.lower() in TRUTH:
        return bool(boolean(text))
    if kind in ("int", "float") and re.fullmatch(r"-?\d+", text):
        return int(text)
    if kind == "float" and re.fullmatch(r"-?\d+\.\d+", text):
        return float(text)
    return text


def value_faults(name: str, option: Mapping[str, Any], value: Any) -> Iterator[str]:
    """Yield a sentence for each fault of a value against its option's spec."""
    kind = option.get("type", "str")
    shown = "" if option.get("no_log") else f", not {value!r}"
    if value is None:
        if kind != "raw":
            yield f"{name} is empty: set it to {WORDS[kind]}{'' if is_required(option) else ', or remove it'}"
        return
    if not fits(kind, value):
        quotes = ""
        if isinstance(value, str) and convert(kind, value) != value:
            quotes = ": remove its quotes"
        elif kind in ("str", "path") and isinstance(value, int | float):
            quotes = ": put it in quotes"
        yield f"{name} must be {WORDS[kind]}{shown}{quotes}"
        return
    choices = option.get("choices")
    if choices and kind != "list" and str(value) not in [str(choice) for choice in choices]:
        yield f"{name} must be one of {', '.join(map(str, choices))}{shown}"
    if kind == "int" and int(value) != option.get("default"):  # a default of 0 may mean: computed
        for ending, (lowest, highest) in BOUNDS.items():
            named = name.endswith((ending, "." + ending[1:])) or f"{ending}s." in name
            if named and not lowest <= int(value) <= highest:
                yield f"{name} must be between {lowest} and {highest}{shown}"
    if kind == "list":
        element = {"type": option.get("elements", "raw"), "options": option.get("options")}
        element |= {key: option[key] for key in ("choices", "no_log") if key in option}
        for index, item in enumerate(value):
            yield from value_faults(f"{name}[{index}]", element, item)
    if kind == "dict" and "elements" in option:
        element = {key: option[key] for key in ("options", "no_log") if key in option}
        for key, inner in value.items():
            yield from value_faults(f"{name}.{key}", element | {"type": option["elements"]}, inner)
    elif kind == "dict" and option.get("options"):
        options = option["options"]
        for key in value:
            if key not in options:
                yield f"{name}.{key} is unknown: {advice(str(key), options) or 'remove it'}"
        for key, inner in options.items():
            if key in value:
                yield from value_faults(f"{name}.{key}", inner, value[key])
            elif inner.get("required"):
                yield f"{name}.{key} is missing: add it"


def is_required(option: Mapping[str, Any]) -> bool:
    """Return whether a variable must be set: it is required, or has no default and is no secret."""
    return bool(option.get("required", "default" not in option and not option.get("no_log")))


def advice(name: str, known: Iterable[str]) -> str:
    """Return a question with the most similar known variable, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else ""


def service_keys() -> dict[str, str]:
    """Return {key: variable} of the variables of the role app that a service's entry sets."""
    defaults = (ROLES / "app/defaults/main.yml").read_text()
    return {key: f"app_{key}" for key in re.findall(r"{{ app_service\.(\w+) \| default\(", defaults)}


def load_specs() -> Specs:
    """Return the argument specs of all roles of this collection."""
    content = {
        path.parts[-3]: yaml_load(path.read_text())["argument_specs"]
        for path in sorted(ROLES.glob("*/meta/argument_specs.yml"))
    }
    specs = {role: entries["main"].get("options", {}) for role, entries in content.items()}
    keys = {key: specs["app"][variable] for key, variable in service_keys().items()}
    entry = content["preflight"]["service"]
    specs["preflight"]["services"] = {
        "type": "dict",
        "elements": "dict",
        "required": True,
        "description": entry["description"],
        "options": entry["options"] | keys,
    }
    return specs
