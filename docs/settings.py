#!/usr/bin/env python3
"""Write docs/settings.md, the table of the service's settings, and app/settings.txt, their names.

The names of secrets are in small letters there, as they are in app_secrets.

With --check nothing is written, and the status tells whether both are up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from app.settings import Settings  # noqa: E402

INTRODUCTION = """\
# Settings of the service

<!-- Written by docs/settings.py from app/settings.py; run it after changing one. -->

Set them in `app_settings`, secrets in `app_secrets` under their names in small letters. A name that is not
here, or a secret among `app_settings`, is refused before anything changes. In development they may stand in
`.env.development`. A secret reaches the service as a file of systemd's, and wins over an environment variable
of its name.

| setting | type | default | what it is |
|---|---|---|---|
"""


def kind(annotation: Any) -> str:
    """Return a type in words; None among the choices only means that it may be left out."""
    if isinstance(annotation, type):
        if issubclass(annotation, SecretStr):
            return "secret"
        return {"str": "text", "Path": "path", "float": "number", "int": "integer", "bool": "true/false"}.get(
            annotation.__name__, "list"
        )
    choices = [
        choice for choice in get_args(annotation) if choice is not type(None) and choice is not Ellipsis
    ]
    if all(isinstance(choice, str) for choice in choices):
        return " ".join(f"`{choice}`" for choice in choices)
    return "list" if getattr(annotation, "__origin__", None) is tuple else kind(choices[0])


def limits(field: FieldInfo) -> str:
    """Return what a number may be."""
    signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    found = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for sign, name in [signs.get(type(limit), ("", ""))]
        if sign
    ]
    return f" ({', '.join(found)})" if found else ""


def default(field: FieldInfo) -> str:
    """Return a default as code."""
    if field.is_required():
        return "**required**"
    value = field.default
    if value is None or value == () or (isinstance(value, SecretStr) and not value.get_secret_value()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else ""


def listed(name: str, field: FieldInfo) -> str:
    """Return a name as preflight knows it: small letters may be given to app_secrets alone."""
    return name if kind(field.annotation) == "secret" else name.upper()


def documents() -> dict[Path, str]:
    """Return both files' text."""
    fields = Settings.model_fields
    names = sorted(listed(name, field) for name, field in fields.items())
    rows = [
        f"| `{name.upper()}` | {kind(field.annotation)}{limits(field)} | {default(field)} "
        f"| {field.description} |"
        for name, field in fields.items()
    ]
    return {
        ROOT / "docs/settings.md": INTRODUCTION + "\n".join(rows) + "\n",
        ROOT / "app/settings.txt": "\n".join(names) + "\n",
    }


def main() -> int:
    """Write the files, or compare them with what is there."""
    if sys.argv[1:] == ["--check"]:
        return int(any(not path.exists() or path.read_text() != text for path, text in documents().items()))
    for path, text in documents().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
