"""Run systemctl. Standard library only: programs outside Ansible get a copy of this file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable


class SystemctlError(Exception):
    """systemctl failed; the message has the command and the reason."""


def systemctl(*arguments: str) -> str:
    """Run systemctl and return its output; raise SystemctlError if it fails."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip() or f"status {done.returncode}"
        raise SystemctlError(f"systemctl {' '.join(arguments)} failed: {reason}")
    return done.stdout


def show(properties: Iterable[str], *units: str) -> list[dict[str, str]]:
    """Return the properties of each unit, in the order of the units."""
    output = systemctl("show", f"--property={','.join(properties)}", *units)
    return [dict(line.split("=", 1) for line in block.splitlines()) for block in output.strip().split("\n\n")]
