"""The metadata of an app's tree or wheel, and the tree of a git ref."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from plugins.action.release_source import ActionModule, SourceError, find
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


def run_git(checkout: Path, *arguments: str) -> str:
    author = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    command = ["git", "-C", str(checkout), *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run_action(**arguments: str) -> dict[str, Any]:
    task = MagicMock(args=arguments, async_val=0, check_mode=False)
    others = [MagicMock() for _ in range(5)]
    return ActionModule(task, *others).run(task_vars={})


def test_a_checkout_of_another_user_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    make_tree(checkout)
    run_git(checkout, "init", "--quiet")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    where = {"checkout": str(checkout), "cache": str(tmp_path / "cache")}
    remedy = f"git config --global --add safe.directory {checkout}"
    refused = run_action(source="v1", **where)
    assert refused["failed"]
    assert remedy in refused["msg"]
    built = run_action(source=str(checkout), **where)
    assert (built["tree"], built["metadata"]["commit"]) == (str(checkout), "")
    assert remedy in built["warnings"][0]


def test_the_repository_of_a_hook_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "checkout")
    run_git(tmp_path / "checkout", "init", "--quiet")
    run_git(tmp_path / "checkout", "add", "--all")
    run_git(tmp_path / "checkout", "commit", "--quiet", "--message", "First")
    commit = run_git(tmp_path / "checkout", "rev-parse", "--short=12", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    assert find(str(tmp_path / "checkout"), tmp_path, tmp_path)[1] == commit


def test_a_ref_is_its_commit_without_the_work_tree(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    make_tree(checkout)

    def git(*arguments: str) -> str:
        return run_git(checkout, *arguments)

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
