"""Run other programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from errors import BackupError

# Commands run as this account; none of the caller's variables may change what they do.
ACCOUNT = "postgres"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def answer(*command: str | Path, stdin: str = "") -> str:
    """Return what a command prints; raise BackupError with what it says if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        env=ENVIRONMENT,
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


def as_postgres(*command: str | Path, stdin: str = "") -> str:
    """Return what a command prints that runs as the account of Postgres."""
    return answer(*account_words(), *command, stdin=stdin)


def account_words() -> list[str]:
    """Return the words before a command by which it runs as the account of Postgres; timers do already."""
    return ["runuser", "-u", ACCOUNT, "--"] if os.geteuid() == 0 else []


def succeeds(*command: str | Path) -> bool:
    """Return whether a command succeeds."""
    try:
        answer(*command)
    except BackupError:
        return False
    return True
