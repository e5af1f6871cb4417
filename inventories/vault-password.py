#!/usr/bin/env python3
"""Print the vault password of the environment that the calling ansible command works on.

Ansible runs this without arguments (ansible.cfg's vault_password_file), so the environment is
read from the caller's own command line (`-i inventories/production`, or a vault file inside the
environment), else from $ANSIBLE_INVENTORY; without either it is ansible.cfg's default, the lab.
$FASTMETAL_VAULT_PASSWORD, where set, is the password of every environment.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

INVENTORIES = Path(__file__).absolute().parent
DEFAULT = "lab"
# Ansible wants a password before it knows whether anything is encrypted.
PLACEHOLDER = "no-secrets-yet"


def environment_of(argument: str) -> str | None:
    """Return the environment that an argument points into."""
    for prefix in ("--inventory-file=", "--inventory=", "-i", "@"):
        argument = argument.removeprefix(prefix)
    path = Path(os.path.normpath(Path.cwd() / argument))
    for folder in (path, *path.parents):
        # Not every argument can be a path.
        with contextlib.suppress(OSError):
            if INVENTORIES.samefile(folder.parent) and folder.is_dir():
                return folder.name
    return None


def find_environment(arguments: Iterable[str]) -> str | None:
    """Return the one environment that the arguments name."""
    found = {name for argument in arguments if argument and (name := environment_of(argument))}
    if len(found) > 1:
        names = " and ".join(sorted(found))
        raise SystemExit(f"This command names the environments {names}: run it for one of them at a time.")
    return found.pop() if found else None


def caller_arguments() -> list[str]:
    """Return the command line of the ansible command that started this script."""
    command_line = Path(f"/proc/{os.getppid()}/cmdline")
    if not command_line.exists():
        return []
    return command_line.read_bytes().decode(errors="surrogateescape").split("\0")


def password(environment: str) -> str:
    """Return the environment's password, or a placeholder where nothing is encrypted."""
    given = os.environ.get("FASTMETAL_VAULT_PASSWORD")
    if given:
        return given
    folder = INVENTORIES / environment
    file = folder / ".vault-password"
    text = file.read_text().strip() if file.exists() else ""
    if text:
        return text
    if (folder / "group_vars/all/vault.yml").exists():
        raise SystemExit(
            f"The secrets of {environment} are encrypted: put their password into "
            f"inventories/{environment}/.vault-password or $FASTMETAL_VAULT_PASSWORD."
        )
    return PLACEHOLDER


def main() -> None:
    """Print the password."""
    environment = find_environment(caller_arguments())
    environment = environment or find_environment(os.environ.get("ANSIBLE_INVENTORY", "").split(","))
    sys.stdout.write(password(environment or DEFAULT) + "\n")


if __name__ == "__main__":
    main()
