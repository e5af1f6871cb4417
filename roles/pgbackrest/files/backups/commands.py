"""Run other programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from errors import BackupError

# Commands run as this account; none of the caller's variables may change what they do.
ACCOUNT = "postgres"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def answer(*command: str | Path, stdin: str = "", environment: Mapping[str, str] = ENVIRONMENT) -> str:
    """Return what a command prints; raise BackupError with what it says if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        env=environment,
        capture_output=True,
        text=True,
        # Such as what a wrong passphrase makes of a file.
        errors="replace",
        check=False,
        cwd="/",
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"{command[0]} ended with {done.returncode}"
        raise BackupError(said[:1000])
    return done.stdout


def as_postgres(*command: str | Path, stdin: str = "", environment: Mapping[str, str] = ENVIRONMENT) -> str:
    """Return what a command prints that runs as the account of Postgres."""
    return answer(*account_words(), *command, stdin=stdin, environment=environment)


def account_words() -> list[str]:
    """Return the words before a command by which it runs as the account of Postgres; timers do already."""
    return ["runuser", "-u", ACCOUNT, "--"] if os.geteuid() == 0 else []


def succeeds(*command: str | Path, environment: Mapping[str, str] = ENVIRONMENT) -> bool:
    """Return whether a command succeeds."""
    try:
        answer(*command, environment=environment)
    except BackupError:
        return False
    return True
