"""Find the files of an app's source, and what the app says of itself."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.fastmetal.metal.plugins.module_utils.uv import BuildError

# Never part of a release. A file .env has the settings and secrets of another environment.
IGNORED = re.compile(
    r"(^|/)(__pycache__|\.[^/]*_cache|[^/]*\.egg-info|\.git|\.hg|\.venv|venv|node_modules|\.tox|\.nox"
    r"|\.artifacts|\.env(\.[^/]*)?|Containerfile)(/|$)|\.py[co]$"
)
# A hook of git names its own repository.
OF_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


def app_files(tree: Path, files: Sequence[str], always: Iterable[str]) -> list[Path]:
    """Return the files and links that make a release: the listed ones, or all that Git does not ignore.

    always: Directories that belong to it although Git ignores them: built assets, with all that was built.
    """
    found: set[Path] = set()
    for name in [*files, *(build_output(tree, name) for name in always)]:
        path = tree / name
        if not path.exists():
            raise BuildError(f"{path} does not exist: correct app_source, app_source_files or static.")
        found |= set(walk(path)) if path.is_dir() else {path}
    if not files:
        found |= set(versioned(tree) or walk(tree))
    kept = (path for path in found if not IGNORED.search(path.relative_to(tree).as_posix()))
    return sorted(path for path in kept if is_link(path, tree) or path.is_file())


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files and links below a folder."""
    for top, folders, files in os.walk(folder):
        # A virtual environment is one of the control node.
        folders[:] = [n for n in folders if not IGNORED.search(n) and not Path(top, n, "pyvenv.cfg").exists()]
        yield from (Path(top, name) for name in files)
        yield from (path for name in folders if (path := Path(top, name)).is_symlink())


def git(tree: Path, *arguments: str) -> str:
    """Return the output of a git command, or nothing if it fails."""
    ours = {name: value for name, value in os.environ.items() if name not in OF_HOOKS}
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "env": ours}
    command = ["git", "-C", str(tree), *arguments]
    try:
        done = subprocess.run(command, **options)  # noqa: S603 - ours
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def versioned(tree: Path) -> list[Path]:
    """Return the files of a tree that Git does not ignore, or nothing if the tree is not in a repository."""
    # The tree of a ref lies in the cache, which this checkout ignores.
    if git(tree, "check-ignore", "."):
        return []
    listing = git(tree, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [tree / name for name in listing.split("\0") if name]


def build_output(tree: Path, name: str) -> str:
    """Return the topmost directory of a path that Git ignores, or the path."""
    parts = Path(name).parts
    folders = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return next(iter(git(tree, "check-ignore", *folders).splitlines()), name)


def is_link(path: Path, tree: Path) -> bool:
    """Return whether a path is a link to another place of the tree, which a release keeps as a link."""
    if not path.is_symlink():
        return False
    inside = not path.readlink().is_absolute() and path.resolve().is_relative_to(tree.resolve())
    if not inside and path.is_dir():
        raise BuildError(f"{path} links to a directory outside of {tree}: replace the link by the directory.")
    return inside


def content(path: Path, tree: Path) -> bytes:
    """Return the content of a file, or the target of a link."""
    return os.fsencode(path.readlink()) if is_link(path, tree) else path.read_bytes()


def copy_files(paths: Iterable[Path], tree: Path, target: Path) -> None:
    """Copy files and links of a tree."""
    for path in paths:
        copy = target / path.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if is_link(path, tree):
            copy.symlink_to(path.readlink())
        else:
            copy.write_bytes(path.read_bytes())


def is_package(config: Mapping[str, Any], tree: Path) -> bool:
    """Return whether a tree is built and installed, by the rule of uv; otherwise it is only copied."""
    tool = config.get("tool", {})
    if tool.get("poetry", {}).get("package-mode") is False:
        return False
    has_backend = "build-system" in config or (tree / "setup.py").is_file()
    return bool(tool.get("uv", {}).get("package", has_backend))


def declared_version(config: Mapping[str, Any], tree: Path) -> str:
    """Return the version that a project declares, or nothing."""
    tool = config.get("tool", {})
    if version := config.get("project", {}).get("version") or tool.get("poetry", {}).get("version"):
        return str(version)
    attribute = tool.get("setuptools", {}).get("dynamic", {}).get("version", {}).get("attr", "")
    module, _, name = attribute.rpartition(".")
    for end in (".py", "/__init__.py"):
        path = tree / f"{module.replace('.', '/')}{end}"
        if module and path.is_file():
            text = path.read_text()
            if match := re.search(rf"^{name}\b[^=\n]*=\s*[\"']([^\"']+)[\"']", text, re.MULTILINE):
                return match[1]
    return ""
