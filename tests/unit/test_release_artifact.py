"""Archives of a release, built from a folder of wheels without a network."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import release_artifact
from plugins.modules.release_artifact import Build, BuildError

SITE = "venv/lib/python3.13/site-packages"
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "service"
version = "1.2"
dependencies = ["alpha"]

[tool.setuptools]
packages = ["service"]
"""


def make_wheel(folder: Path, name: str, *, tag: str = "py3-none-any", requires: str = "") -> Path:
    """Write a wheel with a module, a script and a header."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": f"NAME = '{name} {tag}'\n",
        f"{name}-1.0.data/scripts/{name}-run": "#!python\n",
        f"{name}-1.0.data/headers/{name}.h": "\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def locked(*wheels: Path, marker: str = "") -> str:
    """Return the lock's line of a package with these wheels."""
    name = wheels[0].name.partition("-")[0]
    hashes = (f" --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" for wheel in wheels)
    return f"{name}==1.0{f' ; {marker}' if marker else ''}{''.join(hashes)}\n"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only source of packages."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The tree of an app that needs alpha."""
    tree = tmp_path / "tree"
    (tree / "service").mkdir(parents=True)
    (tree / "pyproject.toml").write_text(PROJECT)
    (tree / "service/__init__.py").write_text("VALUE = 1\n")
    return tree


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The wheel of an app that needs alpha; nothing has to be built from it."""
    return make_wheel(tmp_path, "service", requires="alpha")


def parameters(source: Path, cache: str = "cache", **changes: str) -> dict[str, Any]:
    """Return the module's parameters, for Python 3.13 on x86_64."""
    return {
        "source": str(source),
        "files": ["pyproject.toml", "service"],
        "requirements": str(source.parent / "requirements.txt"),
        "version": "",
        "python_version": "3.13.5",
        "architecture": "x86_64",
        "cache": str(source.parent / cache),
        **changes,
    }


def build(source: Path, lock: str, cache: str = "cache", **changes: str) -> Build:
    """Build a release."""
    (source.parent / cache).mkdir(exist_ok=True)
    (source.parent / "requirements.txt").write_text(lock)
    made = Build(parameters(source, cache, **changes))
    if not made.is_built:
        made.run()
    return made


def names(archive: Path) -> set[str]:
    with tarfile.open(archive) as tree:
        return set(tree.getnames())


def read(archive: Path, name: str) -> str:
    with tarfile.open(archive) as tree:
        file = tree.extractfile(name)
        assert isinstance(file, io.BufferedReader)
        return file.read().decode()


def test_archives_hold_the_code_and_the_dependencies_without_scripts(wheels: Path, source: Path) -> None:
    made = build(source, locked(make_wheel(wheels, "alpha")))
    assert names(made.dependencies) == {
        f"{SITE}/app.pth",
        f"{SITE}/alpha/__init__.py",
        *(f"{SITE}/alpha-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL")),
    }
    assert "alpha-run" not in read(made.dependencies, f"{SITE}/alpha-1.0.dist-info/RECORD")
    assert {"release.json", "code/service/__init__.py"} <= names(made.app)
    about = json.loads(read(made.app, "release.json"))
    assert (about["version"], about["python"], about["packages"]) == ("1.2", "3.13", ["alpha==1.0"])
    assert (about["id"], about["dependencies"]) == (made.release, made.dependencies_id)


def test_a_second_build_is_the_same_byte_for_byte(wheels: Path, source: Path) -> None:
    lock = locked(make_wheel(wheels, "alpha"))
    first, second = build(source, lock), build(source, lock, "other")
    assert first.release == second.release
    for one, other in ((first.app, second.app), (first.dependencies, second.dependencies)):
        assert one.read_bytes() == other.read_bytes()


def test_a_new_release_shares_the_dependencies_without_a_download(wheels: Path, app: Path) -> None:
    wheel = make_wheel(wheels, "alpha")
    lock = locked(wheel)
    first = build(app, lock)
    wheel.unlink()
    second = build(app, lock, version="2")
    assert second.release != first.release
    assert second.dependencies == first.dependencies
    assert json.loads(read(second.app, "release.json"))["packages"] == ["alpha==1.0"]


def test_wheels_and_markers_are_those_of_the_target(wheels: Path, app: Path) -> None:
    """The target's, not those of the Python that runs this test."""
    x86, arm = (
        make_wheel(wheels, "alpha", tag=f"cp313-cp313-manylinux_2_28_{arch}")
        for arch in ("x86_64", "aarch64")
    )
    old, new = make_wheel(wheels, "beta"), make_wheel(wheels, "gamma")
    lock = locked(x86, arm) + locked(old, marker="python_full_version < '3.13.5'")
    lock += locked(new, marker="platform_machine == 'aarch64'")
    made = build(app, lock)
    assert "manylinux_2_28_x86_64" in read(made.dependencies, f"{SITE}/alpha/__init__.py")
    assert json.loads(made.packages.read_text()) == ["alpha==1.0"]
    made = build(app, lock, architecture="aarch64", python_version="3.13.4")
    assert "manylinux_2_28_aarch64" in read(made.dependencies, f"{SITE}/alpha/__init__.py")
    assert json.loads(made.packages.read_text()) == ["alpha==1.0", "beta==1.0", "gamma==1.0"]


def test_a_requirement_without_a_hash_is_refused(wheels: Path, app: Path) -> None:
    make_wheel(wheels, "alpha")
    with pytest.raises(BuildError, match=r"has no hash for alpha==1.0: lock it with hashes\.$"):
        build(app, "alpha==1.0\n")


def test_another_wheel_than_the_locked_one_is_refused(wheels: Path, app: Path) -> None:
    make_wheel(wheels, "alpha")
    with pytest.raises(BuildError, match=r"uv could not install .*alpha==1.0"):
        build(app, f"alpha==1.0 --hash=sha256:{'0' * 64}\n")


def test_a_wheel_that_the_target_lacks_is_named(wheels: Path, app: Path) -> None:
    lock = locked(make_wheel(wheels, "alpha", tag="cp311-cp311-manylinux_2_28_x86_64"))
    with pytest.raises(BuildError, match=r"^alpha==1.0 has no wheel for Python 3.13 on x86_64"):
        build(app, lock)


def test_a_dependency_that_the_lock_lacks_is_named(wheels: Path, app: Path) -> None:
    with pytest.raises(BuildError, match=r"lacks alpha, which the app needs: lock it anew\.$"):
        build(app, locked(make_wheel(wheels, "beta")))


def test_a_wheel_is_released_as_it_is(wheels: Path, app: Path) -> None:
    made = build(app, locked(make_wheel(wheels, "alpha")))
    assert made.release.startswith("1.0-")
    assert "code/service/__init__.py" in names(made.app)


def test_only_the_listed_files_make_the_release(wheels: Path, source: Path) -> None:
    lock = source.parent / "requirements.txt"
    lock.write_text(locked(make_wheel(wheels, "alpha")))

    def release() -> str:
        return Build(parameters(source)).release

    first = release()
    (source / "notes.txt").write_text("not listed\n")
    (source / "service/__pycache__").mkdir()
    (source / "service/__pycache__/x.pyc").touch()
    (source / "service/Containerfile").touch()
    assert release() == first
    (source / "service/__init__.py").write_text("VALUE = 2\n")
    assert release() != first


def test_old_archives_are_removed(wheels: Path, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_artifact, "KEEP", 1)
    lock = locked(make_wheel(wheels, "alpha"))
    first, second = build(app, lock), build(app, lock, version="2")
    assert not first.app.exists()
    assert second.is_built
