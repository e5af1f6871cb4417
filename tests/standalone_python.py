"""A relocatable CPython in the layout of python-build-standalone, made from a lab image's own Python.

`python -m tests.standalone_python RELEASE FOLDER` makes that of a Debian release and links to it as
FOLDER/python.tar.gz.

It brings its own C library, so that it also runs on an older Debian release: bin/python3.X is a script
that starts the interpreter by its own dynamic loader. The interpreter's name is that of the script, by which
a virtual environment finds itself.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from roles.lab.files.labctl import build_image
from tests.lab import ROOT

# Kept for the next lab on this checkout.
ARCHIVES = ROOT / ".lab/pythons"
WRAPPER = """#!/bin/sh
home=$(dirname "$(dirname "$(readlink -f "$0")")")
exec "$home/lib/loader" --library-path "$home/lib/system" --argv0 "$0" "$home/bin/python{short}.bin" "$@"
"""


@dataclass(frozen=True)
class StandalonePython:
    """An archive, its checksum and version."""

    archive: Path
    checksum: str
    version: str


def standalone_python(release: str, folder: Path = ARCHIVES) -> StandalonePython:
    """Return an archive of the Python of a Debian release, which is made once for each image of a lab."""
    image = build_image(release, print)
    binary = next(path for path in sorted(image.glob("usr/bin/python3.*")) if path.name[-1].isdigit())
    short = binary.name.removeprefix("python")
    asked = "import platform; print(platform.python_version())"
    version = chroot(image, f"/usr/bin/{binary.name}", "-c", asked).strip()
    archive = folder / f"cpython-{version}-{platform.machine()}-{image.name}-install_only.tar.gz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            home = Path(scratch, "python")
            fill(home, image, binary, short, version)
            candidate = Path(scratch, "archive")
            with tarfile.open(candidate, "w:gz", compresslevel=1) as tree:
                tree.add(home, "python", filter=anonymous)
            candidate.rename(archive)
    return StandalonePython(archive, hashlib.sha256(archive.read_bytes()).hexdigest(), version)


def chroot(image: Path, *command: str) -> str:
    """Return the output of a command in an image."""
    return subprocess.run(["chroot", image, *command], check=True, capture_output=True, text=True).stdout


def fill(home: Path, image: Path, binary: Path, short: str, version: str) -> None:
    """Write the tree of the interpreter."""
    library = home / f"lib/python{short}"
    unneeded = shutil.ignore_patterns("__pycache__", "test", "idlelib", "tkinter", "EXTERNALLY-MANAGED")
    # Debian's links lead out of the tree, to site-wide configuration.
    shutil.copytree(image / f"usr/lib/python{short}", library, ignore=unneeded, ignore_dangling_symlinks=True)
    (home / "bin").mkdir()
    shutil.copy2(binary, home / f"bin/python{short}.bin")
    wrapper = home / f"bin/python{short}"
    wrapper.write_text(WRAPPER.format(short=short))
    wrapper.chmod(0o755)
    (home / "bin/python3").symlink_to(wrapper.name)
    header = home / f"include/python{short}/patchlevel.h"
    header.parent.mkdir(parents=True)
    header.write_text(f'#define PY_VERSION "{version}"\n')
    (home / "lib/system").mkdir()
    modules = [
        f"/{path.relative_to(image)}" for path in image.glob(f"usr/lib/python{short}/lib-dynload/*.so")
    ]
    listed = chroot(image, "ldd", f"/usr/bin/{binary.name}", *modules)
    # Wheels link to libraries of the C library that Python itself does not need.
    needed = {*re.findall(r"=> (\S+) \(", listed), *re.findall(r"^\s+(/\S+) \(", listed, re.MULTILINE)}
    needed |= {
        f"/{path.relative_to(image)}"
        for path in image.glob("usr/lib/*-linux-gnu/lib*")
        if re.fullmatch(
            r"lib(m|dl|rt|pthread|util|gcc_s|stdc\+\+|nss_dns|nss_files|resolv)\.so\.\d+", path.name
        )
    }
    for name in sorted(needed):
        inside = Path(chroot(image, "readlink", "-f", name).strip())
        shutil.copy2(image / inside.relative_to("/"), home / "lib/system" / Path(name).name)
    loader = next(path for path in (home / "lib/system").iterdir() if path.name.startswith("ld-linux"))
    shutil.copy2(loader, home / "lib/loader")


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return an archive's member without owner and time."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    release, target = sys.argv[1:]
    link = Path(target, "python.tar.gz")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(standalone_python(release).archive)
