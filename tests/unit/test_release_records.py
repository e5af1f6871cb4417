"""The records of SERVICE-release: the lock, the canary and the history."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ROOT

PROGRAM = ROOT / "roles/app/files/release"
OURS = "{}.{}".format(*sys.version_info)


@pytest.fixture
def changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command's object on temporary directories, with stubs for systemd's programs."""
    monkeypatch.syspath_prepend(str(PROGRAM))
    spec = importlib.util.spec_from_file_location("release_command", PROGRAM / "__main__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("service", "lint", "workers"):
        monkeypatch.delitem(sys.modules, name)
    fake = tmp_path / "bin"
    fake.mkdir()
    for command in ("systemctl", "systemd-run", "journalctl"):
        (fake / command).write_text("#!/bin/sh\n")
        (fake / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(fake), prepend=":")
    made = module.Changes("api")
    made.run_command = module.run_command
    made.etc, made.srv, made.run = (tmp_path / name for name in ("etc", "srv", "run"))
    made.instances = made.srv / "instances"
    made.history_file, made.lock_file = made.srv / "history.jsonl", made.run / "deploy.lock"
    for release in ("1.0-old", "1.1-new"):
        home = made.srv / "releases" / release
        home.mkdir(parents=True)
        (home / "release.json").write_text(json.dumps({"python": OURS}))
    for path in (made.instances / "1.0-old.1", made.instances / "1.1-new.1", made.run):
        path.mkdir(parents=True)
    made.replace_link(made.srv / "current", "1.0-old.1")
    return made


def metadata(run: str, **more: str) -> dict[str, str]:
    return {"run": run, "by": "alice", "from": "desk", "action": "deploy", **more}


def make_canary(changes: Any, run: str) -> None:
    (changes.run / "canary.json").write_text(json.dumps(metadata(run)))
    changes.replace_link(changes.run / "canary", "1.1-new.1")


def test_a_run_that_the_lock_refused_rolls_nothing_back(changes: Any) -> None:
    changes.take_lock(metadata("one"), 60, break_lock=False)
    make_canary(changes, "one")
    assert changes.roll_back(metadata("two", release="1.1-new"), "refused") == {"changed": False}
    changes.drop_lock("two")
    assert changes.canary == "1.1-new.1"
    assert changes.lock()["run"] == "one"
    assert changes.history() == []
    assert changes.is_candidate("1.1-new")


def test_a_run_rolls_its_own_canary_back(changes: Any) -> None:
    make_canary(changes, "one")
    assert changes.roll_back(metadata("one"), "a fault")["changed"]
    assert (changes.canary, changes.current) == ("", "1.0-old.1")
    assert changes.history()[-1]["result"] == "rolled_back"
    assert not changes.is_candidate("1.1-new")


def test_a_run_that_broke_the_lock_rolls_the_dead_runs_canary_back(changes: Any) -> None:
    make_canary(changes, "one")
    changes.take_lock(metadata("two"), 60, break_lock=True)
    assert changes.roll_back(metadata("two"), "a fault")["changed"]
    assert changes.canary == ""


def test_a_run_that_failed_before_it_reached_this_host_is_recorded(changes: Any) -> None:
    changes.take_lock(metadata("one"), 60, break_lock=False)
    assert changes.roll_back(metadata("one", release="1.1-new"), "web1: no") == {"changed": False}
    last = changes.history()[-1]
    assert (last["release"], last["result"], last["reason"]) == ("1.1-new", "failed", "web1: no")
    assert not changes.is_candidate("1.1-new")


def test_an_incomplete_line_in_the_history_is_skipped(changes: Any) -> None:
    changes.record(metadata("one"), release="1.0-old", result="ok")
    with changes.history_file.open("a") as stream:
        stream.write('{"time": "2026-')
    changes.record(metadata("two"), release="1.1-new", result="ok")
    assert [entry["run"] for entry in changes.history()] == ["one", "two"]


def test_a_full_disk_takes_no_record_but_the_lock_is_released(
    changes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    changes.take_lock(metadata("one"), 60, break_lock=False)
    make_canary(changes, "one")
    monkeypatch.setattr(changes, "record", full)
    with pytest.raises(OSError, match="No space left"):
        changes.run_command(
            changes, argparse.Namespace(command="rollback", metadata=metadata("one"), reason="full")
        )
    assert (changes.canary, changes.current) == ("", "1.0-old.1")
    assert changes.lock() == {}


def test_a_release_of_another_python_is_neither_started_nor_a_rollback_target(changes: Any) -> None:
    """The operating system was upgraded since."""
    changes.record(metadata("1"), release="1.0-old", previous="", result="ok")
    changes.record(metadata("2"), release="1.1-new", previous="1.0-old", result="ok")
    assert changes.candidates() == ["1.0-old", "1.1-new"]
    (changes.srv / "releases/1.1-new/release.json").write_text('{"python": "3.0"}')
    with pytest.raises(Exception, match=f"1.1-new was installed for Python 3.0, and this host has {OURS}"):
        changes.prepare("1.1-new")
    assert changes.candidates() == ["1.0-old"]


def test_files_of_the_release_before_are_kept(changes: Any) -> None:
    """Also after a rollback: a page of the newer release may be open."""
    assert not (changes.srv / "previous").exists()
    changes.replace_link(changes.srv / "current", "1.1-new.1")
    assert (changes.srv / "previous").resolve().name == "1.0-old"
    changes.replace_link(changes.srv / "current", "1.1-new.2")
    assert (changes.srv / "previous").resolve().name == "1.0-old"
    changes.replace_link(changes.srv / "current", "1.0-old.1")
    assert (changes.srv / "previous").resolve().name == "1.1-new"
    (changes.srv / "next").symlink_to(changes.srv / "releases/1.2-next")
    for number, release in enumerate(("1.2-next", "0.9-older")):
        home = changes.srv / "releases" / release
        home.mkdir()
        os.utime(home, (number, number))
    changes.prune_releases(1)
    assert {home.name for home in (changes.srv / "releases").iterdir()} == {"1.0-old", "1.1-new", "1.2-next"}


@pytest.fixture
def pythons(changes: Any) -> Path:
    """A release that brings its Python, and one that was installed for another Python of the host."""
    folder: Path = changes.srv / "pythons"
    for name, target in (("own", folder / "3.1.4-0/bin/python3"), ("hosts", Path("/usr/bin/python3"))):
        home = changes.srv / "releases" / name
        (home / "venv/bin").mkdir(parents=True)
        (home / "venv/bin/python3").symlink_to(target)
        (home / "release.json").write_text(json.dumps({"python": "3.1"}))
    for name in ("3.1.4-0", "3.1.5-0"):
        (folder / name).mkdir(parents=True)
    return folder


def test_a_release_with_its_own_python_survives_an_upgrade_of_the_host(changes: Any, pythons: Path) -> None:
    assert changes.is_candidate("own")
    assert not changes.is_candidate("hosts")
    (pythons / "3.1.4-0").rmdir()
    assert not changes.is_candidate("own")


def test_a_python_is_removed_with_its_last_release(changes: Any, pythons: Path) -> None:
    changes.prune_releases(9)
    assert {path.name for path in pythons.iterdir()} == {"3.1.4-0", "3.1.5-0"}  # a run may be using it
    for python in pythons.iterdir():
        os.utime(python, (0, 0))
    changes.prune_releases(9)
    assert {path.name for path in pythons.iterdir()} == {"3.1.4-0"}
    changes.prune_releases(0)
    assert list(pythons.iterdir()) == []
