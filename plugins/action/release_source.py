"""Find the source of a release (a directory, a wheel or a Git repository) and the person who releases it."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
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
  - Runs on the control node. A ref is unpacked into the cache, so that the work tree does not matter.
  - The cache keeps a copy of each repository that is named by its address, so that later runs only fetch
    what is new.
  - Returns C(tree), the directory or wheel, C(subdirectory), and C(metadata) with C(commit), C(by), C(from)
    and C(run).
author: Fastmetal
options:
  source:
    type: str
    default: ""
    description: >-
      A directory, a wheel, the address of a Git repository, or a ref of the checkout; empty to build nothing.
  ref: {type: str, default: "", description: "A branch, tag or commit of the source's repository."}
  subdirectory: {type: str, default: "", description: "The app's directory in the source."}
  checkout: {type: path, default: "", description: "The Git checkout of a source that is a ref itself."}
  cache: {type: path, default: "", description: "The directory for repositories and the trees of refs."}
"""

EXAMPLES = r"""
- name: Find the source of the release
  fastmetal.metal.release_source:
    source: git@git.example.com:shop/backend.git
    ref: v1.2
    cache: /srv/checkout/.artifacts
"""

# An address, such as https://HOST/PATH, file:///PATH or USER@HOST:PATH.
ADDRESS = re.compile(r"^([a-z+]+://|[\w.-]+@[\w.-]+:)")
OF_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


class SourceError(Exception):
    """A failure, as one sentence for the operator."""


class OwnershipError(SourceError):
    """git does not read a checkout that belongs to another user."""


def run_git(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Run a git command that asks no question; return nothing without git. Raise OwnershipError."""
    command = ["git", "-C", str(directory), *arguments]
    # A hook of git names its own repository.
    ours = {name: value for name, value in os.environ.items() if name not in OF_HOOKS}
    ours |= {"LC_ALL": "C.UTF-8", "GIT_TERMINAL_PROMPT": "0"}
    ours.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    try:
        done = subprocess.run(command, env=ours, stdin=subprocess.DEVNULL, **options)  # noqa: S603 - ours
    except FileNotFoundError:
        return None
    if "dubious ownership" in done.stderr:
        raise OwnershipError(
            f"git does not read {directory}, which belongs to another user: run as its owner,"
            f" or trust it by `git config --global --add safe.directory {directory}`."
        )
    return done


def git(directory: Path, *arguments: str) -> str:
    """Return the output of a git command, or nothing if it fails; raise OwnershipError."""
    done = run_git(directory, *arguments)
    return done.stdout.strip() if done and done.returncode == 0 else ""


def commit_of(repository: Path, ref: str) -> str:
    """Return the commit of a ref, or nothing."""
    if ref.startswith("-"):
        return ""
    for name in (ref, f"origin/{ref}"):
        found = git(repository, "rev-parse", "--verify", "--quiet", "--short=12", f"{name}^{{commit}}")
        if found:
            return found
    return ""


def fetch(address: str, ref: str, cache: Path) -> Path:
    """Return the cache's copy of a repository, with the newest commits of all branches and tags."""
    if re.match(r"^[a-z+]+://[^/@]*:[^/@]*@", address):
        raise SourceError(
            "app_source has a password, which the history would show: give it to git, such as by"
            " `git config --global credential.helper store`, or use SSH."
        )
    copy = cache / f"repository-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    if not copy.exists():
        fresh = copy.with_suffix(f".{uuid.uuid4().hex[:8]}")
        git(cache, "init", "--quiet", "--bare", str(fresh))
        git(fresh, "remote", "add", "origin", address)
        fresh.rename(copy)
    if re.fullmatch(r"[0-9a-f]{40}", ref) and commit_of(copy, ref):
        return copy
    # Without a ref, the newest commit of the default branch counts.
    wanted = [
        "+refs/heads/*:refs/remotes/origin/*",
        "+refs/tags/*:refs/tags/*",
        "+HEAD:refs/remotes/origin/HEAD",
    ]
    done = run_git(copy, "fetch", "--quiet", "--prune", "--force", "--no-auto-maintenance", "origin", *wanted)
    if done is None:
        raise SourceError(f"app_source {address} needs git on the control node: install it.")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        first = next((line for line in lines if line.startswith(("fatal:", "ERROR:", "error:"))), lines[0])
        raise SourceError(f"git cannot fetch app_source {address}: {first.rstrip('.')}.")
    return copy


def unpack(checkout: Path, commit: str, tree: Path) -> None:
    """Write the tree of a commit, completely or not at all."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix="tree-") as directory:
        work = Path(directory)
        archive = work / "tree.tar"
        if (done := run_git(checkout, "archive", f"--output={archive}", commit)) and done.returncode:
            raise SourceError(f"git cannot read commit {commit} of {checkout}: {done.stderr.strip()}.")
        with tarfile.open(archive) as files:
            files.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            files.extractall(work / "tree")  # noqa: S202 - git's own
        shutil.rmtree(tree, ignore_errors=True)
        (work / "tree").rename(tree)


def find(source: str, ref: str, checkout: Path, cache: Path) -> tuple[Path, str, str]:
    """Return the directory or wheel of a source, its commit, and the directory of the source in the tree.

    The commit has a plus sign if the work tree differs from it.
    """
    try:
        if ADDRESS.match(source):
            cache.mkdir(parents=True, exist_ok=True)
            repository, ref, prefix = fetch(source, ref, cache), ref or "HEAD", ""
            where = f"app_ref '{ref}' is no branch, tag or commit of {source}: correct it."
        else:
            path = Path(source).expanduser().absolute()
            if path.is_file():
                return path, "", ""
            if path.is_dir() and not ref:
                commit = git(path, "rev-parse", "--short=12", "HEAD")
                changed = commit and git(path, "status", "--porcelain", "--", ".")
                return path, f"{commit}+" if changed else commit, ""
            if path.is_dir():
                repository, prefix = path, git(path, "rev-parse", "--show-prefix").rstrip("/")
                where = f"app_ref '{ref}' is no branch, tag or commit of {source}: correct it."
            else:
                repository, ref, prefix = checkout, source, ""
                where = (
                    f"app_source '{source}' is no directory, wheel, address of a repository or git ref of"
                    f" {checkout}: correct it."
                )
        commit = commit_of(repository, ref)
        if not commit:
            raise SourceError(where)
        # Nothing of the work tree gets into the release.
        tree = cache / f"tree-{commit}"
        top = Path(git(repository, "rev-parse", "--show-toplevel") or repository)
        unpack(top, commit, tree)
    except (OSError, tarfile.TarError) as error:
        raise SourceError(f"app_source '{source}' cannot be read: {error}.") from None
    return tree, commit, prefix


class ActionModule(ActionBase):
    """Action `release_source`."""

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Find the source and the person."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "source": {"type": "str", "default": ""},
                "ref": {"type": "str", "default": ""},
                "subdirectory": {"type": "str", "default": ""},
                "checkout": {"type": "path", "default": ""},
                "cache": {"type": "path", "default": ""},
            }
        )
        who = os.environ.get("SUDO_USER") or getpass.getuser()
        metadata = {"by": who, "from": socket.gethostname(), "run": uuid.uuid4().hex[:12]}
        if not args["source"]:
            return result | {"changed": False, "metadata": metadata}
        try:
            tree, commit, prefix = find(
                args["source"], args["ref"], Path(args["checkout"]), Path(args["cache"])
            )
        except OwnershipError as error:
            # A directory is built as it is; only its commit stays unknown.
            tree, commit, prefix = Path(args["source"]).expanduser().absolute(), "", ""
            if args["ref"] or not tree.is_dir():
                return result | {"failed": True, "msg": str(error)}
            result["warnings"] = [f"The history will not name the commit: {error}"]
        except SourceError as error:
            return result | {"failed": True, "msg": str(error)}
        if (tree / ".gitmodules").exists() and commit and tree.name == f"tree-{commit}":
            result["warnings"] = [f"{args['source']} has submodules, which a ref does not include."]
        place = {"tree": str(tree), "subdirectory": str(Path(prefix, args["subdirectory"]))}
        return result | {"changed": False, **place, "metadata": {"commit": commit, **metadata}}
