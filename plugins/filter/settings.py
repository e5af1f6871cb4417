"""Let the service judge its settings on the control node."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

DOCUMENTATION = r"""
name: settings_faults
short_description: Return what the service says of its settings
description:
  - Loads the settings as an instance would, by C(load_settings) in C(app.settings) of a source tree or wheel.
  - Returns an empty string if they are valid, if the source has no such function, or if this Python lacks its
    packages.
  - A path is replaced by an empty file, as files of the host are not on the control node.
author: Fastmetal
positional: settings, secrets
options:
  _input: {description: Source tree or wheel of the service., type: path, required: true}
  settings: {description: Environment variables by name., type: dict, required: true}
  secrets: {description: Credentials by name., type: dict, required: true}
"""

EXAMPLES = r"""
__app_settings_faults: >-
  {{ app_source | fastmetal.metal.settings_faults({'LOG_LEVEL': 'INFO'}, {'secret_key': secret_key}) }}
"""

RETURN = r"""
_value: {description: Sentences that name settings, never their values., type: str}
"""

# Another application has no such function, and another control node may lack the service's packages.
PROGRAM = """
try:
    from app.settings import SettingsError, load_settings
except ImportError:
    raise SystemExit
try:
    load_settings()
except SettingsError as error:
    print(error)
"""


def text(value: Any) -> str:
    """Return a value as the service's environment file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else json.dumps(value)


def settings_faults(tree: str, settings: Mapping[str, Any], secrets: Mapping[str, Any]) -> str:
    """Return the service's sentences about its settings, or an empty string."""
    return _judge(
        str(tree), *(tuple((name, text(x)) for name, x in given.items()) for given in (settings, secrets))
    )


@cache
def _judge(tree: str, settings: tuple[tuple[str, str], ...], secrets: tuple[tuple[str, str], ...]) -> str:
    with tempfile.TemporaryDirectory() as directory:
        credentials = Path(directory, "credentials")
        credentials.mkdir()
        for name, value in secrets:
            (credentials / name).write_text(value)
        stand_in = Path(directory, "file")
        stand_in.touch()
        environment = {name: str(stand_in) if value.startswith("/") else value for name, value in settings}
        environment |= {"PYTHONPATH": tree, "CREDENTIALS_DIRECTORY": str(credentials)}
        command = [sys.executable, "-B", "-c", PROGRAM]
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, check=False
        )
    return done.stdout.strip()


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"settings_faults": settings_faults}
