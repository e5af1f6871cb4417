"""Find the source of a release (a directory, a wheel or a git ref) and the person who releases it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: release_source
short_description: Find the source of a release, and the person who releases it
description:
  - Runs on the control node. A git ref is unpacked into the cache, so that the work tree does not matter.
  - Returns C(tree), the directory or wheel, and C(metadata) with C(commit), C(by), C(from) and C(run).
author: Fastmetal
options:
  source: {type: str, default: "", description: "A directory, wheel or git ref; empty to build nothing."}
  checkout: {type: path, default: "", description: "The git checkout of refs."}
  cache: {type: path, default: "", description: "The directory for the trees of refs."}
"""

EXAMPLES = r"""
- name: Find the source of the release
  fastmetal.metal.release_source:
    source: v1.2
    checkout: /srv/checkout
    cache: /srv/checkout/.artifacts
"""


OF_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


class SourceError(Exception):
    """A failure, as one sentence for the operator."""


class OwnershipError(SourceError):
    """git does not read a checkout that belongs to another user."""


def git(directory: Path, *arguments: str) -> str:
    """Return the output of a git command, or nothing if it fails; raise OwnershipError."""
    command = ["git", "-C", str(directory), *arguments]
    # A hook of git names its own repository.
    ours = {name: value for name, value in os.environ.items() if name not in OF_HOOKS}
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    try:
        done = subprocess.run(command, env=ours | {"LC_ALL": "C.UTF-8"}, **options)  # noqa: S603 - ours
    except FileNotFoundError:
        return ""
    if "dubious ownership" in done.stderr:
        raise OwnershipError(
            f"git does not read {directory}, which belongs to another user: run as its owner,"
            f" or trust it by `git config --global --add safe.directory {directory}`."
        )
    return done.stdout.strip() if done.returncode == 0 else ""


def unpack(checkout: Path, commit: str, tree: Path) -> None:
    """Write the tree of a commit, completely or not at all."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix="tree-") as directory:
        work = Path(directory)
        archive = work / "tree.tar"
        git(checkout, "archive", f"--output={archive}", commit)
        with tarfile.open(archive) as files:
            files.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            files.extractall(work / "tree")  # noqa: S202 - git's own
        shutil.rmtree(tree, ignore_errors=True)
        (work / "tree").rename(tree)


def find(source: str, checkout: Path, cache: Path) -> tuple[Path, str]:
    """Return the directory or wheel of a source and its commit, with a plus sign if the work tree differs."""
    path = Path(source).expanduser().absolute()
    try:
        if path.is_dir():
            commit = git(path, "rev-parse", "--short=12", "HEAD")
            return path, commit and commit + ("+" if git(path, "status", "--porcelain", "--", ".") else "")
        if path.is_file():
            return path, ""
        commit = git(checkout, "rev-parse", "--verify", "--quiet", "--short=12", f"{source}^{{commit}}")
        if not commit:
            raise SourceError(
                f"app_source '{source}' is no directory, wheel or git ref of {checkout}: correct it."
            )
        # Nothing of the work tree gets into the release.
        tree = cache / f"tree-{commit}"
        unpack(checkout, commit, tree)
    except (OSError, tarfile.TarError) as error:
        raise SourceError(f"app_source '{source}' cannot be read: {error}.") from None
    return tree, commit


class ActionModule(ActionBase):
    """Action `release_source`."""

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Find the source and the person."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "source": {"type": "str", "default": ""},
                "checkout": {"type": "path", "default": ""},
                "cache": {"type": "path", "default": ""},
            }
        )
        who = os.environ.get("SUDO_USER") or getpass.getuser()
        metadata = {"by": who, "from": socket.gethostname(), "run": uuid.uuid4().hex[:12]}
        if not args["source"]:
            return result | {"changed": False, "metadata": metadata}
        try:
            tree, commit = find(args["source"], Path(args["checkout"]), Path(args["cache"]))
        except OwnershipError as error:
            # A directory is built as it is; only its commit stays unknown.
            tree, commit = Path(args["source"]).expanduser().absolute(), ""
            if not tree.is_dir():
                return result | {"failed": True, "msg": str(error)}
            result["warnings"] = [f"The history will not name the commit: {error}"]
        except SourceError as error:
            return result | {"failed": True, "msg": str(error)}
        return result | {"changed": False, "tree": str(tree), "metadata": {"commit": commit, **metadata}}
