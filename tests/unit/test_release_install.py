"""Releases are installed from their archives, and share equal dependencies."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from plugins.modules.release_install import announce, install, is_installed

PACKAGES = "venv/lib/python{}.{}/site-packages".format(*sys.version_info)
PYTHON = "{}.{}".format(*sys.version_info)
DEPENDENCIES = {f"{PACKAGES}/dependency.py": "VALUE = 1\n"}


def pack(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def app(folder: Path, version: str, dependencies: str) -> Path:
    release = json.dumps({"id": version, "python": PYTHON, "dependencies": dependencies})
    code = f"from dependency import VALUE\nprint('{version}', VALUE)\n"
    files = {
        "release.json": release,
        "code/service.py": code,
        "code/broken.py": "no Python",
        f"venv/bin/{version}": f"#!/bin/sh\necho {version}\n",
        f"{PACKAGES}/app.pth": "../../../../code\n",
    }
    return pack(folder / f"{version}.tar.gz", files)


def put(archives: list[Path], directory: Path, dependencies: str) -> None:
    install(archives, directory, {"python": PYTHON, "dependencies_id": dependencies}, sys.executable)


def test_a_second_release_links_the_dependencies_of_the_first(tmp_path: Path) -> None:
    dependencies = pack(tmp_path / "dependencies.tar.gz", DEPENDENCIES)
    first, second = tmp_path / "releases/1.0", tmp_path / "releases/1.1"
    put([app(tmp_path, "1.0", "abc"), dependencies], first, "abc")
    put([app(tmp_path, "1.1", "abc")], second, "abc")
    for release in (first, second):
        done = subprocess.run(
            [release / "venv/bin/python", "-m", "service"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout == f"{release.name} 1\n", done.stderr
        cached = importlib.util.cache_from_source(str(release / "code/service.py"))
        assert Path(cached).exists()
    shared = [*first.glob(f"{PACKAGES}/**/*.py"), *first.glob(f"{PACKAGES}/**/*.pyc")]
    shared = [path for path in shared if path.name != "app.pth"]
    assert len(shared) == 2
    assert sorted(path.name for path in (second / "venv/bin").glob("1*")) == ["1.1"]
    assert not (first / f"{PACKAGES}/app.pth").samefile(second / f"{PACKAGES}/app.pth")
    for path in shared:
        assert path.samefile(second / path.relative_to(first))
    assert not (first / "code/service.py").samefile(second / "code/service.py")


def test_a_release_whose_dependencies_no_release_has_is_not_installed(tmp_path: Path) -> None:
    directory = tmp_path / "releases/1.1"
    with pytest.raises(OSError, match="no release has its dependencies abd any more"):
        put([app(tmp_path, "1.1", "abd")], directory, "abd")
    assert not (directory / "release.json").exists()


def test_a_release_of_another_python_is_installed_again_and_keeps_its_migration(tmp_path: Path) -> None:
    directory = tmp_path / "releases/1.0"
    directory.mkdir(parents=True)
    (directory / "release.json").write_text('{"id": "1.0", "python": "3.0", "dependencies": "abc"}')
    (directory / "migration.sql").write_text("ALTER TABLE")
    (directory / "restore-point").write_text("before-api-1@20260101T000000Z")
    assert not is_installed(directory, PYTHON)
    dependencies = pack(tmp_path / "dependencies.tar.gz", DEPENDENCIES)
    put([app(tmp_path, "1.0", "abc"), dependencies], directory, "abc")
    assert is_installed(directory, PYTHON)
    assert (directory / "migration.sql").read_text() == "ALTER TABLE"
    assert (directory / "restore-point").read_text() == "before-api-1@20260101T000000Z"


def test_the_release_that_was_installed_last_is_next(tmp_path: Path) -> None:
    for release in ("1.0", "1.1"):
        (tmp_path / "releases" / release).mkdir(parents=True)
        announce(tmp_path / "releases" / release)
    assert (tmp_path / "next").resolve() == tmp_path / "releases/1.1"
