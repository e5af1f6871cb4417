"""Fetch and inspect a standalone CPython on the control node, in the layout of python-build-standalone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.urls import open_url

TOP = "python"
PATCH_LEVEL = re.compile(r"python/include/python(3\.\d+)t?/patchlevel\.h")
# The machine in the header of an ELF file.
MACHINES = {62: "x86_64", 183: "aarch64"}
TIMEOUT_SECONDS = 60


class PythonError(Exception):
    """A failure, as one sentence for the operator."""


def find(wanted: str, archive: str, checksum: str, architecture: str, cache: Path) -> dict[str, Any]:
    """Return a standalone CPython as {archive, checksum, version, id}; raise PythonError.

    wanted: The version, such as 3.14 or 3.14.0.
    archive: Its archive, a URL or a path; empty downloads it by uv.
    checksum: The SHA-256 of the archive; required for a URL.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if not archive:
        path = download_by_uv(wanted, architecture, cache)
    elif "://" in archive:
        if not checksum:
            raise PythonError("python_archive is a URL: set python_checksum to the SHA-256 of the archive")
        path = download(archive, checksum, cache)
    else:
        path = Path(archive).expanduser()
        if not path.is_file():
            raise PythonError(
                f"python_archive {archive} does not exist on the control node: correct the path"
            )
    digest = sha256(path)
    if checksum and digest != checksum.lower().removeprefix("sha256:"):
        raise PythonError(
            f"the SHA-256 of {path} is {digest}, and python_checksum is {checksum}: correct one"
        )
    found = inspect(path, digest, cache)
    version, machine = found["version"], found["machine"]
    if version != wanted and not version.startswith(f"{wanted}."):
        raise PythonError(f"{archive} is Python {version}, and python is {wanted}: correct one")
    if machine not in ("", architecture):
        raise PythonError(
            f"{archive} is for {machine}, and the host is {architecture}: use the host's archive"
        )
    return {
        "archive": str(path),
        "checksum": digest,
        "version": version,
        "id": f"{version}-{digest[:12]}",
    }


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(url: str, checksum: str, cache: Path) -> Path:
    """Download an archive into the cache, where the next run finds it by its checksum."""
    path = cache / f"python-{checksum.lower().removeprefix('sha256:')[:16]}.tar.gz"
    if path.exists():
        return path
    with tempfile.NamedTemporaryFile(dir=cache, prefix=".python-", delete=False) as partial:
        try:
            with open_url(url, timeout=TIMEOUT_SECONDS) as answer:
                shutil.copyfileobj(answer, partial)
        except (OSError, urllib.error.URLError) as error:
            Path(partial.name).unlink()
            raise PythonError(f"{url} cannot be downloaded: {error}") from None
    Path(partial.name).rename(path)
    return path


def download_by_uv(wanted: str, architecture: str, cache: Path) -> Path:
    """Let uv download a version, which it checks; its settings for mirrors apply."""
    path = cache / f"python-{wanted}-{architecture}.tar.gz"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=cache, prefix=".python-") as folder:
        request = f"cpython-{wanted}-linux-{architecture}-gnu"
        # A control node may have installed this version with uv: its own directory would be used instead.
        options = ["--install-dir", folder, "--no-bin", "--quiet", "--no-progress", "--color=never"]
        done = subprocess.run(
            [sys.executable, "-m", "uv", "python", "install", *options, request],
            capture_output=True,
            text=True,
            check=False,
            env={"UV_SYSTEM_CERTS": "true", **os.environ},
        )
        if done.returncode:
            reason = " ".join(done.stderr.split()).removeprefix("error: ")
            raise PythonError(
                f"uv could not download Python {wanted}: {reason}. Give its archive as python_archive"
            )
        trees = [tree for tree in Path(folder).iterdir() if tree.is_dir() and not tree.is_symlink()]
        home = next(tree for tree in trees if (tree / "bin").is_dir())
        partial = Path(folder, "archive")
        with tarfile.open(partial, "w:gz", compresslevel=6) as tree:
            tree.add(home, TOP, filter=anonymous)
        partial.rename(path)
    return path


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return an archive's member without owner and time; byte code is made on the host."""
    if "/__pycache__" in member.name:
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def inspect(path: Path, digest: str, cache: Path) -> Mapping[str, str]:
    """Return the version and the machine of an archive; the cache remembers them by the checksum."""
    known = cache / f"python-{digest[:16]}.json"
    if known.exists():
        remembered: dict[str, str] = json.loads(known.read_text())
        return remembered
    version = machine = ""
    try:
        with tarfile.open(path) as tree:
            for member in tree:
                if PATCH_LEVEL.fullmatch(member.name) and (header := tree.extractfile(member)):
                    named = re.search(rb'PY_VERSION\s+"([^"]+)"', header.read())
                    version = named[1].decode() if named else ""
                elif re.fullmatch(r"python/bin/python3\.\d+", member.name) and member.isfile():
                    binary = tree.extractfile(member)
                    start = binary.read(20) if binary else b""
                    if start.startswith(b"\x7fELF"):
                        machine = MACHINES.get(int.from_bytes(start[18:20], "little"), "another machine")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise PythonError(f"{path} is no archive that Python's tarfile can read: {error}") from None
    if not version:
        raise PythonError(
            f"{path} has no python/include/python3.X/patchlevel.h: use an archive of the kind install_only"
            " of python-build-standalone"
        )
    found = {"version": version, "machine": machine}
    known.write_text(json.dumps(found) + "\n")
    return found
