"""A standalone CPython: judged on the control node, installed on a host completely or not at all."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fastmetal.metal.plugins.plugin_utils.standalone_python import PythonError, find

from plugins.modules import release_python

ELF = b"\x7fELF" + bytes(14) + (183).to_bytes(2, "little")
# uv rewrites it.
SYSCONFIG = b"# system configuration generated and used by the sysconfig module\nbuild_time_vars = {}\n"
VERSION = platform.python_version()
SHORT = "{}.{}".format(*sys.version_info)


def make_archive(
    path: Path, version: str = "3.14.2", binary: bytes = b"#!/bin/sh\n", header: str = ""
) -> Path:
    """Write an archive in the layout of python-build-standalone."""
    home = path.parent / f"{path.name}-tree"
    short = version.rpartition(".")[0]
    for name, content in {
        f"include/python{short}/patchlevel.h": (header or f'#define PY_VERSION  "{version}"\n').encode(),
        f"bin/python{short}": binary,
        f"lib/python{short}/os.py": b"",
        f"lib/python{short}/_sysconfigdata__linux_{platform.machine()}-linux-gnu.py": SYSCONFIG,
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    (home / f"bin/python{short}").chmod(0o755)
    (home / "bin/python3").symlink_to(f"python{short}")
    with tarfile.open(path, "w:gz") as tree:
        tree.add(home, "python")
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of Python 3.14.2."""
    return make_archive(tmp_path / "python.tar.gz")


def test_a_path_is_found_with_version_and_checksum(archive: Path, tmp_path: Path) -> None:
    digest = sha256(archive)
    for wanted in ("3.14", "3.14.2"):
        assert find(wanted, str(archive), digest, "x86_64", tmp_path / "cache") == {
            "archive": str(archive),
            "checksum": digest,
            "version": "3.14.2",
            "id": f"3.14.2-{digest[:12]}",
        }


def test_a_url_is_downloaded_once_and_checked(archive: Path, tmp_path: Path) -> None:
    digest, cache = sha256(archive), tmp_path / "cache"
    found = find("3.14", archive.as_uri(), f"sha256:{digest}", "x86_64", cache)
    assert Path(found["archive"]).parent == cache
    uri = archive.as_uri()
    archive.unlink()
    assert find("3.14", uri, digest, "x86_64", cache) == found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"wanted": "3.13"}, "is Python 3.14.2, and python is 3.13: correct one"),
        ({"wanted": "3.1"}, "is Python 3.14.2, and python is 3.1: correct one"),
        ({"archive": "/no/such.tar.gz"}, "python_archive /no/such.tar.gz does not exist on the control node"),
        ({"archive": "https://127.0.0.1:1/python.tar.gz"}, "python_archive is a URL: set python_checksum"),
        (
            {"archive": "https://127.0.0.1:1/python.tar.gz", "checksum": "0" * 64},
            "https://127.0.0.1:1/python.tar.gz cannot be downloaded",
        ),
        ({"checksum": "0" * 64}, f"and python_checksum is {'0' * 64}: correct one"),
    ],
)
def test_what_does_not_fit_is_refused(
    archive: Path, tmp_path: Path, change: dict[str, str], fault: str
) -> None:
    given = {"wanted": "3.14", "archive": str(archive), "checksum": "", "architecture": "x86_64", **change}
    with pytest.raises(PythonError) as error:
        find(**given, cache=tmp_path / "cache")
    assert fault in str(error.value)


def test_an_archive_of_another_machine_is_refused(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "arm.tar.gz", binary=ELF)
    with pytest.raises(PythonError, match="is for aarch64, and the host is x86_64"):
        find("3.14", str(archive), "", "x86_64", tmp_path / "cache")
    assert find("3.14", str(archive), "", "aarch64", tmp_path / "cache")["version"] == "3.14.2"


def test_another_kind_of_archive_is_refused(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "other.tar.gz", header="nothing")
    with pytest.raises(PythonError, match="use an archive of the kind install_only"):
        find("3.14", str(archive), "", "x86_64", tmp_path / "cache")
    (tmp_path / "text").write_text("not found")
    with pytest.raises(PythonError, match="is no archive that Python's tarfile can read"):
        find("3.14", str(tmp_path / "text"), "", "x86_64", tmp_path / "cache")


def test_uv_downloads_a_version_of_a_mirror_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real uv reads a list of downloads of ours, which names a file."""
    archive = make_archive(tmp_path / "cpython-3.14.2.tar.gz")
    entry = {
        "name": "cpython",
        "arch": {"family": platform.machine(), "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": 3,
        "minor": 14,
        "patch": 2,
        "prerelease": "",
        "url": archive.as_uri(),
        "sha256": sha256(archive),
        "variant": None,
        "build": None,
    }
    listed = tmp_path / "downloads.json"
    listed.write_text(json.dumps({f"cpython-3.14.2-linux-{platform.machine()}-gnu": entry}))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", str(listed))
    cache = tmp_path / "cache"
    found = find("3.14", "", "", platform.machine(), cache)
    assert found["version"] == "3.14.2"
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", "/no/such/list")
    assert find("3.14", "", "", platform.machine(), cache) == found
    with pytest.raises(
        PythonError, match=r"uv could not download Python 3\.13: .*Give its archive as python_archive"
    ):
        find("3.13", "", "", platform.machine(), cache)


def working_archive(path: Path) -> Path:
    """Write an archive whose interpreter is this one."""
    script = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    return make_archive(path, VERSION, script.encode())


def install(
    run_module: Callable[..., dict[str, Any]], archive: Path, home: Path, **more: str
) -> dict[str, Any]:
    """Return the module's result."""
    given = {"archive": str(archive), "checksum": sha256(archive), "version": VERSION, "directory": str(home)}
    return run_module(release_python, **(given | more))


def test_an_interpreter_that_runs_is_installed_with_byte_code(
    run_module: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    archive, home = working_archive(tmp_path / "python.tar.gz"), tmp_path / "pythons/one"
    home.parent.mkdir()
    assert install(run_module, archive, home)["changed"]
    assert not archive.exists()
    assert list((home / f"lib/python{SHORT}/__pycache__").glob("os.*.pyc"))
    done = subprocess.run(
        [home / "bin/python3", "-c", "print(1)"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    assert [path.name for path in home.parent.iterdir()] == ["one"]
    assert home.stat().st_mtime > time.time() - 60


@pytest.mark.parametrize(
    ("binary", "more", "fault"),
    [
        (
            b"#!/bin/sh\necho 'libc.so.6: version GLIBC_2.38 not found' >&2; exit 1\n",
            {},
            "GLIBC_2.38 not found",
        ),
        (b"#!/bin/sh\necho 3.1.4\n", {}, f"Python {VERSION} does not run on this host: 3.1.4"),
        (b"", {"checksum": "0" * 64}, "is not the archive that was copied: run again"),
    ],
)
def test_an_interpreter_that_does_not_run_leaves_nothing(
    run_module: Callable[..., dict[str, Any]], tmp_path: Path, binary: bytes, more: dict[str, str], fault: str
) -> None:
    archive, home = make_archive(tmp_path / "python.tar.gz", VERSION, binary), tmp_path / "pythons/one"
    home.parent.mkdir()
    assert fault in install(run_module, archive, home, **more)["msg"]
    assert list(home.parent.iterdir()) == []
