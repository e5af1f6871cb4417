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
    assert find(str(tmp_path / "checkout"), "", tmp_path, tmp_path)[1] == commit


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
    tree, found, _ = find("v1", "", checkout, cache)
    assert found == commit
    assert (tree / "app/settings.txt").read_text() == SETTINGS
    assert find(str(checkout), "", checkout, cache)[1] == f"{commit}+"
    with pytest.raises(SourceError, match="is no directory, wheel, address of a repository or git ref of"):
        find("v9", "", checkout, cache)
    with pytest.raises(SourceError, match=r"cannot be read: .*too long"):
        find("v" * 300, "", checkout, cache)
    (checkout / "out").symlink_to("/" + "far/" * 50)
    git("add", "out")
    git("commit", "--quiet", "--message", "A link out of the tree")
    with pytest.raises(SourceError, match=r"cannot be read: .*out"):
        find("HEAD", "", checkout, cache)


def repository(path: Path) -> str:
    """Make a repository with an app in backend and the tag v1; return its commit."""
    make_tree(path / "backend")
    run_git(path, "init", "--quiet", "--initial-branch=trunk")
    run_git(path, "add", "--all")
    run_git(path, "commit", "--quiet", "--message", "First")
    run_git(path, "tag", "--annotate", "v1", "--message", "First")
    return run_git(path, "rev-parse", "--short=12", "HEAD")


def test_a_ref_of_the_apps_own_repository(tmp_path: Path) -> None:
    """By its address, the path of a checkout, or a path below it; the newest commit without a ref."""
    origin = tmp_path / "origin"
    first = repository(origin)
    cache = tmp_path / "cache"
    address = f"file://{origin}"
    found = run_action(source=address, ref="v1", subdirectory="backend", cache=str(cache))
    assert (found["metadata"]["commit"], found["subdirectory"]) == (first, "backend")
    assert Path(found["tree"], "backend/app/settings.txt").read_text() == SETTINGS
    (origin / "backend/app/settings.txt").write_text("NEW\n")
    run_git(origin, "commit", "--quiet", "--all", "--message", "Second")
    second = run_git(origin, "rev-parse", "--short=12", "HEAD")
    for arguments in (
        {"source": address},
        {"source": address, "ref": "trunk"},
        {"source": address, "ref": second},
        {"source": str(origin), "ref": "trunk"},
    ):
        found = run_action(cache=str(cache), **arguments)
        assert found["metadata"]["commit"] == second, arguments
        assert Path(found["tree"], "backend/app/settings.txt").read_text() == "NEW\n"
    found = run_action(source=str(origin / "backend"), ref="v1", cache=str(cache))
    assert (found["metadata"]["commit"], found["subdirectory"]) == (first, "backend")
    assert Path(found["tree"], "backend/app/settings.txt").read_text() == SETTINGS


def test_a_repository_or_ref_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    missing = run_action(source=f"file://{tmp_path}/none", cache=cache)
    assert missing["msg"].startswith(
        f"git cannot fetch app_source file://{tmp_path}/none: fatal: '{tmp_path}/none'"
    )
    repository(tmp_path / "origin")
    for ref in ("v9", "--output=x"):
        refused = run_action(source=f"file://{tmp_path}/origin", ref=ref, cache=cache)
        assert f"app_ref '{ref}' is no branch, tag or commit of" in refused["msg"]
    refused = run_action(source="https://me:password@git.example.com/x.git", cache=cache)
    assert refused["msg"].startswith("app_source has a password, which the history would show")
