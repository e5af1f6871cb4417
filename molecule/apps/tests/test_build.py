"""The releases of the four applications: their code, dependencies and commands."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.apps import APPS
from tests.apps.host import Apps
from tests.lab import ROOT


def about(apps: Apps, service: str) -> dict[str, Any]:
    """Return what a release says of itself."""
    found: dict[str, Any] = json.loads(apps.ssh(f"cat /srv/{service}/current/release.json"))
    return found


@pytest.mark.parametrize(
    ("service", "command", "said"),
    [
        ("notes", "alembic heads", "(head)"),
        ("notes", "python -m alembic --version", "alembic 1."),
        ("jobs", "arq --version", "arq"),
        ("chat", "gunicorn --version", "gunicorn (version 27"),
        ("board", "sh -c pwd", "/code"),
    ],
)
def test_commands_of_the_dependencies_run_in_the_code(
    apps: Apps, service: str, command: str, said: str
) -> None:
    assert said in apps.ssh(f"{service}-run {command}")


def test_a_lock_that_was_made_here_is_kept_with_the_release(apps: Apps) -> None:
    lines = apps.ssh("cat /srv/notes/current/venv/../requirements.lock").splitlines()
    locked = {line.partition("==")[0] for line in lines}
    assert {"fastapi", "starlette", "alembic", "mako"} <= locked
    assert all(" --hash=sha256:" in line for line in lines)


def test_what_the_worker_needs_is_added(apps: Apps) -> None:
    for service in APPS:
        names = {package.partition("==")[0] for package in about(apps, service)["packages"]}
        assert {"gunicorn", "uvloop"} <= names, service


def test_a_workspace_brings_its_members_and_source_distributions(apps: Apps) -> None:
    assert any(package.startswith("docopt==") for package in about(apps, "board")["packages"])
    assert "slugs" in apps.ssh("ls /srv/board/current/venv/../local")
    assert "index.html" in apps.ssh("ls /srv/board/current/code/app/dist")


@pytest.mark.usefixtures("apps")
def test_the_repositories_are_as_they_were() -> None:
    for service in APPS:
        command = ["git", "status", "--porcelain"]
        source = ROOT / ".lab/molecule-apps/sources" / service
        assert subprocess.check_output(command, cwd=source, text=True) == "", service
        assert not (source / ".artifacts").exists()
