#!/usr/bin/env python3
"""Write docs/roles.md, the reference of all role variables, from the roles' argument specs.

With --check, write nothing and exit with 1 if the file is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs/roles.md"
# Its spec also declares the variables of no role: shared ones and secrets.
SHARED_ROLE = "preflight"
INTRODUCTION = """\
# Variables

<!-- Written by docs/reference.py from roles/*/meta/argument_specs.yml; run it after changing one. -->

Set them in `inventories/<environment>/group_vars/all/main.yml`, or for one host in `host_vars/<host>.yml`.
Precedence, lowest first: role default, shared `group_vars/all`, environment, host, `-e`. The shared
`group_vars/all` derive addresses and connections from the inventory's groups. An unknown or invalid variable
ends a run before anything changes. A dictionary `<role>_<name>` is merged over `<role>_base_<name>`,
and `base_sysctl` over `base_default_sysctl`.
"""


def text(value: Any) -> str:
    """Return a description as one line of Markdown; Ansible's own markup becomes code."""
    words = " ".join(value) if isinstance(value, list) else str(value)
    words = re.sub(r"\b[COVI]\((?:main:)?((?:[^()]|\([^()]*\))*)\)", r"`\1`", words)
    return " ".join(words.split()).replace("|", "\\|")


def default(option: Mapping[str, Any]) -> str:
    """Return a default as code, nested values on one line."""
    if "default" not in option:
        return "**required**" if option.get("required") else ""
    flow = yaml.safe_dump(option["default"], default_flow_style=True, width=10**6, sort_keys=False)
    return f"`{flow.removesuffix('...' + chr(10)).strip()}`".replace("|", "\\|")


def kind(option: Mapping[str, Any]) -> str:
    """Return a type in words."""
    name = str(option.get("type", "str"))
    return f"list of {option['elements']}" if "elements" in option else name


def rows(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a table row for each option, and for each option inside it."""
    for name, option in options.items():
        description = text(option.get("description", ""))
        if "choices" in option:
            description += f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}."
        yield f"| `{prefix}{name}` | {kind(option)} | {default(option)} | {description} |"
        if "options" in option:
            inner = "[]." if option.get("type") == "list" else "."
            yield from rows(option["options"], f"{prefix}{name}{inner}")


def section(title: str, introduction: str, options: Mapping[str, Any]) -> str:
    """Return a chapter with the table of some options."""
    table = ["| variable | type | default | description |", "|---|---|---|---|", *rows(options)]
    return "\n".join([f"## {title}", "", introduction, "", *table, ""])


def reference() -> str:
    """Return the whole reference."""
    content = {
        path.parts[-3]: yaml.safe_load(path.read_text())["argument_specs"]
        for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml"))
    }
    specs = {role: entries["main"] for role, entries in content.items()}
    entry = content[SHARED_ROLE]["service"]
    options = specs[SHARED_ROLE]["options"]
    shared = {name: option for name, option in options.items() if not name.startswith(f"{SHARED_ROLE}_")}
    specs[SHARED_ROLE]["options"] = {name: options[name] for name in options if name not in shared}
    secrets = {name: option for name, option in shared.items() if name.startswith("secret_")}
    plain = {name: {"required": True} | option for name, option in shared.items() if name not in secrets}
    parts = [
        INTRODUCTION,
        section(
            "Shared by all roles", "`group_vars/all/main.yml` sets them; an environment names itself.", plain
        ),
        section(entry["short_description"], text(entry["description"]), entry["options"]),
        section(
            "Secrets", "`make secrets ENV=<environment>` puts them into its encrypted `vault.yml`.", secrets
        ),
    ]
    for role, spec in specs.items():
        lines = [f"{spec['short_description']}.", *map(text, spec.get("description", []))]
        parts.append(section(role, "\n\n".join(lines), spec["options"]))
    return "\n".join(parts)


def main() -> int:
    """Write the reference, or compare it with the file."""
    wanted = reference()
    if sys.argv[1:] == ["--check"]:
        return int(not TARGET.exists() or TARGET.read_text() != wanted)
    TARGET.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
