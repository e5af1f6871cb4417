"""What an app's tree or wheel says about itself, and what a git ref is turned into."""

from __future__ import annotations

import importlib.util
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ROOT


def load(path: str) -> Any:
    """Load a plugin, which Ansible finds by its folder."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "roles/app" / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


app_source = load("filter_plugins/app_source.py")
app_tree = load("action_plugins/app_tree.py")

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
    about = app_source.app_about(make(tmp_path / "x-1-py3-none-any.whl"))
    assert about == {"python": ">=3.11,<4", "settings": ["DEBUG", "DATABASE_URL"]}


def test_an_app_that_says_nothing_is_let_pass(tmp_path: Path) -> None:
    assert app_source.app_about(str(tmp_path)) == {"python": "", "settings": []}
    assert app_source.app_runs_on("3.10.12", "")


def test_compares_versions() -> None:
    assert app_source.app_runs_on("3.11.2", ">=3.11,<4")
    assert not app_source.app_runs_on("3.10.12", ">=3.11,<4")


def test_a_ref_is_its_commit_and_not_the_work_tree(tmp_path: Path) -> None:
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
    tree, found = app_tree.find("v1", checkout, cache)
    assert found == commit
    assert (tree / "app/settings.txt").read_text() == SETTINGS
    assert app_tree.find(str(checkout), checkout, cache)[1] == f"{commit}+"
    with pytest.raises(app_tree.TreeError, match="is no directory, wheel or git ref of"):
        app_tree.find("v9", checkout, cache)
    with pytest.raises(app_tree.TreeError, match=r"cannot be read: .*too long"):
        app_tree.find("v" * 300, checkout, cache)
    (checkout / "out").symlink_to("/" + "far/" * 50)
    git("add", "out")
    git("commit", "--quiet", "--message", "A link out of the tree")
    with pytest.raises(app_tree.TreeError, match=r"cannot be read: .*out"):
        app_tree.find("HEAD", checkout, cache)
