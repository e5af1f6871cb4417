"""Packages and sources of apps for the tests of releases, made without a network."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

BACKEND = """
import os, zipfile

def build_wheel(folder, settings=None, metadata=None):
    {fault}
    info = "{name}-1.0.dist-info"
    name = "{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("{name}.py", "NAME = '{name}'\\n")
        wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\n"
            "Tag: {tag}\\n")
        wheel.writestr(info + "/RECORD", "")
    return name
"""


def make_wheel(
    folder: Path, name: str, *, tag: str = "py3-none-any", requires: str = "", version: str = "1.0"
) -> Path:
    """Write a wheel with a module, a command, a script and a header."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"NAME = '{name} {tag}'\n\n\ndef main():\n    print(NAME)\n",
        f"{name}-{version}.data/scripts/{name}-run": "#!python\nprint('run')\n",
        f"{name}-{version}.data/headers/{name}.h": "\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def source_files(name: str, tag: str = "py3-none-any", fault: str = "pass") -> dict[str, str]:
    """Return the files of a package that builds itself into a wheel with this tag, or fails."""
    return {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "backend.py": BACKEND.format(name=name, tag=tag, fault=fault),
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "1.0"\n',
    }


def make_sdist(folder: Path, name: str, *, tag: str = "py3-none-any", fault: str = "pass") -> Path:
    """Write a source distribution."""
    sdist = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for path, text in source_files(name, tag, fault).items():
            entry = tarfile.TarInfo(f"{name}-1.0/{path}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return sdist


def locked(*files: Path, marker: str = "") -> str:
    """Return the lock's line of a package with these files."""
    name, version = files[0].name.removesuffix(".tar.gz").split("-")[:2]
    hashes = (f" --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files)
    return f"{name}=={version}{f' ; {marker}' if marker else ''}{''.join(hashes)}\n"


def write(tree: Path, files: dict[str, str]) -> Path:
    """Write the files of a tree."""
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tree
