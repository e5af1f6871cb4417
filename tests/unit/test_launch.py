"""The launcher, through which every process of a service starts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import ROOT

LAUNCH = [sys.executable, "-IS", str(ROOT / "roles/app/files/release/launch.py")]
SHOW = "import json, os, sys; print(json.dumps([dict(os.environ), os.getcwd(), sys.argv[1:]]))"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    release = tmp_path / "releases/1.0-0123456789ab"
    (release / "venv/bin").mkdir(parents=True)
    (release / "venv/bin/python").symlink_to(sys.executable)
    return release


def instance_of(release: Path) -> Path:
    """Return an instance of a release, by the link to it."""
    instance = release.parents[1] / "instances/1.0-0123456789ab.1"
    instance.mkdir(parents=True)
    (instance / "venv").symlink_to(Path("../../releases", release.name, "venv"))
    current = release.parents[1] / "current"
    current.symlink_to(instance)
    return current


def shown(directory: Path, **environment: str) -> tuple[dict[str, str], str, list[str]]:
    """Return environment, directory and arguments of a command."""
    command = [*LAUNCH, str(directory), "python", "-S", "-c", SHOW, "a b", "$HOME"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: tuple[dict[str, str], str, list[str]] = json.loads(done.stdout)
    return result


def test_a_command_runs_in_its_release(release: Path) -> None:
    environment, directory, arguments = shown(instance_of(release), KEPT="x")
    assert (directory, arguments) == (str(release), ["a b", "$HOME"])
    assert environment["RELEASE"] == release.name
    assert environment["PATH"] == f"{release}/venv/bin:/usr/bin:/bin"
    assert environment["KEPT"] == "x"
    (release / "code").mkdir()
    assert shown(release)[1] == str(release / "code")


def test_the_credential_becomes_variables_of_the_process(release: Path, tmp_path: Path) -> None:
    given = {
        "SECRET_KEY": "a\n\"b' $c",
        "DEBUG": False,
        "PORT": 5432,
        "HOSTS": ["a"],
        "GONE": None,
        "OLD": "new",
    }
    (tmp_path / "environment").write_text(json.dumps(given))
    environment, _, _ = shown(release, CREDENTIALS_DIRECTORY=str(tmp_path), OLD="old")
    assert environment["SECRET_KEY"] == given["SECRET_KEY"]
    assert [environment[name] for name in ("DEBUG", "PORT", "HOSTS", "OLD")] == [
        "false",
        "5432",
        '["a"]',
        "new",
    ]
    assert "GONE" not in environment


def test_a_missing_program_gets_a_sentence(release: Path) -> None:
    done = subprocess.run([*LAUNCH, release, "alembik"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"alembik cannot run in release {release.name}: No such file or directory.\n"


def test_a_command_waits_for_the_lock_of_another(release: Path, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    sleep = ["python", "-S", "-c", "import time; time.sleep(1)"]
    with subprocess.Popen([*LAUNCH, "--lock", lock, release, *sleep]):
        time.sleep(0.5)
        began = time.monotonic()
        subprocess.run([*LAUNCH, "--lock", lock, release, *sleep], check=True)
    assert time.monotonic() - began > 1.3
