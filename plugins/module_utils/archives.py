"""Write the archives of a release, byte for byte the same every time."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path, PurePath

EPOCH = 315532800  # 1980, the earliest time of a zip archive
UNUSED_FOLDERS = {"include", "share"}
# They differ from one installation to the next.
UNUSED_FILES = {".lock", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"}
# Position-independent: the archive does not know where the release will lie.
SHEBANG = """#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")/python" "$0" "$@"
' '''
"""
PROGRAM = """#!/bin/sh
exec "$(dirname -- "$(realpath -- "$0")")/../lib/{python}/site-packages/bin/{name}" "$@"
"""
SCRIPT = """import sys

from {module} import {first}

sys.exit({name}())
"""


@contextlib.contextmanager
def packing(archive: Path, work: Path) -> Iterator[tarfile.TarFile]:
    """Write an archive, and move it into place when it is complete."""
    fresh = work / archive.name
    with (
        fresh.open("wb") as target,
        gzip.GzipFile(filename="", fileobj=target, mode="wb", compresslevel=1, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tree,
    ):
        yield tree
    fresh.replace(archive)


def add(tree: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Add a file to an archive."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    # Nginx and Starlette make an ETag of time and size, which another content must change.
    entry.mtime = EPOCH + (zlib.crc32(content) >> 2)
    tree.addfile(entry, io.BytesIO(content))


def add_link(tree: tarfile.TarFile, name: str, target: str) -> None:
    """Add a symbolic link to an archive."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode, entry.mtime = tarfile.SYMTYPE, target, 0o777, EPOCH
    tree.addfile(entry)


def add_installed(tree: tarfile.TarFile, folder: str, target: Path) -> None:
    """Add the files of an installation but for its commands."""
    commands = {PurePath("bin", path.name) for path in (target / "bin").glob("*") if is_script(path)}
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target)
        if is_used(name) and name not in commands and path.is_file():
            content = (
                used_records(path.read_bytes(), commands) if name.name == "RECORD" else path.read_bytes()
            )
            add(tree, f"{folder}/{name.as_posix()}", content, mode(path))


def mode(path: Path) -> int:
    """Return the mode of a file in a release."""
    return 0o755 if os.access(path, os.X_OK) else 0o644


def is_used(path: PurePath) -> bool:
    """Return whether a file of an installation goes into the archive."""
    return path.parts[0] not in UNUSED_FOLDERS and path.name not in UNUSED_FILES


def is_script(path: Path) -> bool:
    """Return whether a command is a text, and no program of the machine."""
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def used_records(content: bytes, commands: Collection[PurePath] = ()) -> bytes:
    """Return a RECORD, the list of a distribution's files, without the files that the archive has not."""
    rows = csv.reader(content.decode().splitlines())
    kept = sorted(row for row in rows if is_used(path := PurePath(row[0])) and path not in commands)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(kept)
    return text.getvalue().encode()


def scripts(target: Path, python: str) -> dict[str, str]:
    """Return the commands of an installation, which run with the Python beside them.

    python: The folder of the Python below lib, such as python3.13.
    """
    found = {}
    for path in sorted((target / "bin").glob("*")):
        if is_script(path):
            first, _, rest = path.read_text(errors="surrogateescape").partition("\n")
            found[path.name] = SHEBANG + rest if "python" in first else f"{first}\n{rest}"
        else:
            found[path.name] = PROGRAM.format(python=python, name=path.name)
    # Those that uv has written name the control node's Python, in a form that depends on its path.
    for entries in sorted(target.glob("*.dist-info/entry_points.txt")):
        points = metadata.Distribution.at(entries.parent).entry_points
        for command in points.select(group="console_scripts"):
            first = command.attr.partition(".")[0]
            found[command.name] = SHEBANG + SCRIPT.format(
                module=command.module, first=first, name=command.attr
            )
    return found
