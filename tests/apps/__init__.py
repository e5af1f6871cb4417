"""Four applications that know nothing of this repository, as Git repositories of their own.

`python -m tests.apps DIRECTORY` writes them there. The lock files of two of them name the package index, so they
are made here, as their authors would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

APPS = ("board", "chat", "jobs", "notes")
HERE = Path(__file__).parent
LOCKS = {
    "board": "lock",
    "jobs": "pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes -o pylock.toml",
}


def make_repository(name: str, directory: Path, python: str = "") -> Path:
    """Copy an application into `directory`, lock and commit it, and return its path.

    Args:
        name: one of APPS.
        directory: the parent of the new repository.
        python: an interpreter of 3.12 or newer, which `board` needs for its lock; by default the one that uv finds.
    """
    tree = directory / name
    shutil.copytree(HERE / name, tree, ignore=shutil.ignore_patterns("__pycache__"))
    if name in LOCKS:
        options = [f"--python={python}"] if python and name == "board" else []
        run("uv", *LOCKS[name].split(), *options, "--quiet", cwd=tree)
    run("git", "init", "--quiet", "--initial-branch=main", cwd=tree)
    commit(tree, "Start")
    return tree


def commit(tree: Path, subject: str) -> None:
    """Commit all files of a repository."""
    author = ["-c", "user.name=Author", "-c", "user.email=author@example.com"]
    run("git", "add", "--all", cwd=tree)
    run("git", *author, "commit", "--quiet", f"--message={subject}", cwd=tree)


def run(*command: str, cwd: Path) -> None:
    """Run a command with the certificates of this machine; raise its error output if it fails."""
    environment = {**os.environ, "UV_SYSTEM_CERTS": "true"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{cwd.name}: {' '.join(command)}: {done.stderr.strip()}")
