#!/usr/bin/env python3
"""Print the vault password of the environment that the calling Ansible command works on.

Ansible runs this script without arguments (vault_password_file in ansible.cfg). So it reads the environment
from its parent's command line: `-i inventories/production`, or a file inside the environment. Without
one it takes $ANSIBLE_INVENTORY, then the default of ansible.cfg, the lab. docs/adr/0007 has the reasons.
If $FASTMETAL_VAULT_PASSWORD is set, it is the password of every environment.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

INVENTORIES = Path(__file__).absolute().parent
DEFAULT = "lab"
# Ansible needs a password before it knows whether a file is encrypted.
PLACEHOLDER = "no-secrets-yet"


def environment_of(argument: str) -> str | None:
    """Return the environment that contains the path in an argument."""
    for prefix in ("--inventory-file=", "--inventory=", "-i", "@"):
        argument = argument.removeprefix(prefix)
    path = Path(os.path.normpath(Path.cwd() / argument))
    for folder in (path, *path.parents):
        # An argument may be too long for a path.
        with contextlib.suppress(OSError):
            if INVENTORIES.samefile(folder.parent) and folder.is_dir():
                return folder.name
    return None


def find_environment(arguments: Iterable[str]) -> str | None:
    """Return the environment that the arguments name; exit if they name several."""
    found = {name for argument in arguments if argument and (name := environment_of(argument))}
    if len(found) > 1:
        names = " and ".join(sorted(found))
        raise SystemExit(f"This command names the environments {names}: run it for one of them at a time.")
    return found.pop() if found else None


def caller_arguments() -> list[str]:
    """Return the command line of the parent process, empty without /proc."""
    command_line = Path(f"/proc/{os.getppid()}/cmdline")
    if not command_line.exists():
        return []
    return command_line.read_bytes().decode(errors="surrogateescape").split("\0")


def password(environment: str) -> str:
    """Return the environment's password, or a placeholder if it has no secrets yet; exit if it is missing."""
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
