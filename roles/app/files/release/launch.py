"""Run a command of a release: launch.py [--lock FILE] DIRECTORY COMMAND…

DIRECTORY is a release or an instance of one. The command gets the release's programs, its code as the
working directory, and the variables of the credential `environment`. They exist in the process only: a unit,
a command line or a file would show them to others.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Replace this process by the command."""
    if arguments[0] == "--lock":
        wait_for_lock(Path(arguments[1]))
        arguments = arguments[2:]
    # The link `venv` of an instance points into its release.
    release = Path(arguments[0], "venv").resolve().parent
    code = release / "code"
    os.chdir(code if code.is_dir() else release)
    environment = os.environ | {
        "RELEASE": release.name,
        "PATH": f"{release}/venv/bin:/usr/bin:/bin",
        **exported(Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"))),
    }
    try:
        os.execvpe(arguments[1], arguments[1:], environment)
    except OSError as error:
        sys.exit(f"{arguments[1]} cannot run in release {release.name}: {error.strerror}.")


def exported(credentials: Path) -> dict[str, str]:
    """Return the variables of the credential `environment`."""
    path = credentials / "environment"
    given = json.loads(path.read_text()) if path.exists() else {}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
        if value is not None
    }


def wait_for_lock(path: Path) -> None:
    """Wait until no other process holds the lock; the command and its children keep it."""
    lock = os.open(path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.set_inheritable(lock, True)


if __name__ == "__main__":
    main(sys.argv[1:])
