"""Judge dictionaries of dictionaries, which argument specs cannot describe."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

DOCUMENTATION = r"""
name: entry_faults
short_description: Find entries with unknown, missing or mistyped fields
description:
  - Returns a sentence for each fault of a dictionary whose values are dictionaries with known fields.
  - Null and false are accepted, as they remove an entry of the base.
  - The sentences show no values, as a field may be a password.
author: Fastmetal
positional: variable, base, fields
options:
  _input: {description: The dictionary that the operator sets., type: dict, required: true}
  variable: {description: The name of that variable., type: str, required: true}
  base: {description: The entries that the operator's are merged over., type: dict, required: true}
  fields:
    description:
      - Each field with its type: C(str), C(int), C(bool), C(list), C(dict). A required one ends with C(!).
    type: dict
    required: true
"""

EXAMPLES = r"""
__nginx_rate_limit_faults: >-
  {{ nginx_rate_limits | fastmetal.metal.entry_faults(
       'nginx_rate_limits', nginx_base_rate_limits, {'path': 'str!', 'rate': 'str!', 'burst': 'int!'}) }}
"""

RETURN = r"""
_value: {description: The sentences., type: list, elements: str}
"""

TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a string", lambda value: isinstance(value, str)),
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "list": ("a list", lambda value: isinstance(value, list | tuple)),
    "dict": ("a dictionary", lambda value: isinstance(value, Mapping)),
}


def entry_faults(
    entries: Mapping[str, Any], variable: str, base: Mapping[str, Any], fields: Mapping[str, str]
) -> list[str]:
    """Return a sentence for each unknown, missing or mistyped field of the entries."""
    return list(_faults(entries, variable, base, fields))


def _faults(
    entries: Mapping[str, Any], variable: str, base: Mapping[str, Any], fields: Mapping[str, str]
) -> Iterator[str]:
    for key, entry in entries.items():
        name = f"{variable}.{key}"
        if entry is None or entry is False:
            continue
        if not isinstance(entry, Mapping):
            yield f"{name} must be a dictionary with {', '.join(fields)}, or null to remove it."
            continue
        for field in entry:
            if field not in fields:
                close = difflib.get_close_matches(str(field), list(fields), n=1, cutoff=0.7)
                remedy = f"write {close[0]}" if close else f"the fields are {', '.join(fields)}"
                yield f"{name}.{field} is unknown: {remedy}."
        inherited = base.get(key) or {}
        for field, kind in fields.items():
            words, fits = TYPES[kind.rstrip("!")]
            value = entry.get(field, inherited.get(field))
            if value is None:
                if kind.endswith("!"):
                    yield f"{name}.{field} is missing: set it to {words}."
            elif not fits(value):
                remedy = (
                    ": put it in quotes" if kind.startswith("str") and isinstance(value, int | float) else ""
                )
                yield f"{name}.{field} must be {words}{remedy}."


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"entry_faults": entry_faults}
