"""Four applications that know nothing of this repository, as Git repositories of their own.

`python -m tests.apps DIRECTORY` writes them there. The lock files of two of them name the package index, so they
are made here, as their authors would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.standalone_python import standalone_python

APPS = ("board", "chat", "jobs", "notes")
HERE = Path(__file__).parent


def make_repository(name: str, directory: Path) -> Path:
    """Copy an application into `directory`, lock and commit it, and return its path.

    `board` needs Python 3.12 or newer for its lock, which this machine may lack.
    """
    tree = directory / name
    shutil.copytree(HERE / name, tree, ignore=shutil.ignore_patterns("__pycache__"))
    if name == "board":
        with tempfile.TemporaryDirectory() as scratch:
            with tarfile.open(standalone_python("trixie").archive) as archive:
                archive.extractall(scratch, filter="fully_trusted")
            run("uv", "lock", "--quiet", f"--python={scratch}/python/bin/python3", cwd=tree)
    elif name == "jobs":
        options = ["--universal", "--python-version=3.11", "--generate-hashes", "--output-file=pylock.toml"]
        run("uv", "pip", "compile", "--quiet", "pyproject.toml", *options, cwd=tree)
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
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "UV_SYSTEM_CERTS": "true"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{cwd.name}: {' '.join(command)}: {done.stderr.strip()}")
