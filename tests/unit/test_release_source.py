"""The metadata of an app's tree or wheel, and the tree of a git ref."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from plugins.action.release_source import SourceError, find
from plugins.filter.release import in_version_range, release_metadata

SETTINGS = "DEBUG\nDATABASE_URL\n"


def make_tree(path: Path) -> str:
    (path / "app").mkdir(parents=True)
    (path / "app/settings.txt").write_text(SETTINGS)
    (path / "pyproject.toml").write_text('[project]\nname = "x"\nrequires-python = ">=3.11,<4"\n')
    return str(path)


def make_wheel(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("app/settings.txt", SETTINGS)
        wheel.writestr("x-1.dist-info/METADATA", "Name: x\nRequires-Python: >=3.11,<4\n")
    return str(path)


@pytest.mark.parametrize("make", [make_tree, make_wheel])
def test_reads_python_and_settings(tmp_path: Path, make: Any) -> None:
    metadata = release_metadata(make(tmp_path / "x-1-py3-none-any.whl"))
    assert metadata == {"python": ">=3.11,<4", "settings": ["DEBUG", "DATABASE_URL"]}


def test_an_app_without_metadata_passes(tmp_path: Path) -> None:
    assert release_metadata(str(tmp_path)) == {"python": "", "settings": []}
    assert in_version_range("3.10.12", "")


def test_python_versions_are_compared() -> None:
    assert in_version_range("3.11.2", ">=3.11,<4")
    assert not in_version_range("3.10.12", ">=3.11,<4")


def test_a_ref_is_its_commit_without_the_work_tree(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    make_tree(checkout)

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        command = ["git", "-C", str(checkout), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "First")
    git("tag", "v1")
    (checkout / "app/settings.txt").write_text("CHANGED\n")
    commit = git("rev-parse", "--short=12", "HEAD")
    cache = checkout / ".artifacts"
    tree, found = find("v1", checkout, cache)
    assert found == commit
    assert (tree / "app/settings.txt").read_text() == SETTINGS
    assert find(str(checkout), checkout, cache)[1] == f"{commit}+"
    with pytest.raises(SourceError, match="is no directory, wheel or git ref of"):
        find("v9", checkout, cache)
    with pytest.raises(SourceError, match=r"cannot be read: .*too long"):
        find("v" * 300, checkout, cache)
    (checkout / "out").symlink_to("/" + "far/" * 50)
    git("add", "out")
    git("commit", "--quiet", "--message", "A link out of the tree")
    with pytest.raises(SourceError, match=r"cannot be read: .*out"):
        find("HEAD", checkout, cache)
