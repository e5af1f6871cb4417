"""What a host's release command keeps and whose it is: the lock, the trial and the history."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ROOT

PROGRAM = ROOT / "roles/app/files/release"
OURS = "{}.{}".format(*sys.version_info)


@pytest.fixture
def changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command's object on directories of its own, with a systemctl that always agrees."""
    monkeypatch.syspath_prepend(str(PROGRAM))
    spec = importlib.util.spec_from_file_location("release_command", PROGRAM / "__main__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("service", "lint"):
        monkeypatch.delitem(sys.modules, name)
    fake = tmp_path / "bin"
    fake.mkdir()
    for command in ("systemctl", "systemd-run", "journalctl"):
        (fake / command).write_text("#!/bin/sh\n")
        (fake / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(fake), prepend=":")
    made = module.Changes("api")
    made.carry_out = module.carry_out
    made.etc, made.srv, made.run = (tmp_path / name for name in ("etc", "srv", "run"))
    made.instances = made.srv / "instances"
    made.history_file, made.lock_file = made.srv / "history.jsonl", made.run / "deploy.lock"
    for release in ("1.0-old", "1.1-new"):
        home = made.srv / "releases" / release
        home.mkdir(parents=True)
        (home / "release.json").write_text(json.dumps({"python": OURS}))
    for path in (made.instances / "1.0-old.1", made.instances / "1.1-new.1", made.run):
        path.mkdir(parents=True)
    made.point(made.srv / "current", "1.0-old.1")
    return made


def about(run: str, **more: str) -> dict[str, str]:
    return {"run": run, "by": "alice", "from": "desk", "action": "deploy", **more}


def put_on_trial(changes: Any, run: str) -> None:
    (changes.run / "trial.json").write_text(json.dumps(about(run)))
    changes.point(changes.run / "trial", "1.1-new.1")


def test_a_run_that_the_lock_refused_takes_nothing_back(changes: Any) -> None:
    changes.take_lock(about("one"), 60, force=False)
    put_on_trial(changes, "one")
    assert changes.back(about("two", release="1.1-new"), "refused") == {"changed": False}
    changes.drop_lock("two")
    assert changes.trial == "1.1-new.1"
    assert changes.lock()["run"] == "one"
    assert changes.history() == []
    assert changes.is_candidate("1.1-new")


def test_a_run_takes_its_own_back(changes: Any) -> None:
    put_on_trial(changes, "one")
    assert changes.back(about("one"), "a fault")["changed"]
    assert (changes.trial, changes.current) == ("", "1.0-old.1")
    assert changes.history()[-1]["result"] == "returned"
    assert not changes.is_candidate("1.1-new")


def test_who_broke_the_lock_takes_the_dead_runs_trial_back(changes: Any) -> None:
    put_on_trial(changes, "one")
    changes.take_lock(about("two"), 60, force=True)
    assert changes.back(about("two"), "a fault")["changed"]
    assert changes.trial == ""


def test_a_run_that_failed_before_this_host_is_in_its_history(changes: Any) -> None:
    changes.take_lock(about("one"), 60, force=False)
    assert changes.back(about("one", release="1.1-new"), "web1: no") == {"changed": False}
    last = changes.history()[-1]
    assert (last["release"], last["result"], last["reason"]) == ("1.1-new", "failed", "web1: no")
    assert not changes.is_candidate("1.1-new")


def test_half_a_line_in_the_history_hurts_nobody(changes: Any) -> None:
    changes.record(about("one"), release="1.0-old", result="ok")
    with changes.history_file.open("a") as stream:
        stream.write('{"time": "2026-')
    changes.record(about("two"), release="1.1-new", result="ok")
    assert [entry["run"] for entry in changes.history()] == ["one", "two"]


def test_a_full_disk_takes_no_record_but_gives_the_lock_back(
    changes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    changes.take_lock(about("one"), 60, force=False)
    put_on_trial(changes, "one")
    monkeypatch.setattr(changes, "record", full)
    with pytest.raises(OSError, match="No space left"):
        changes.carry_out(changes, argparse.Namespace(command="return", about=about("one"), reason="full"))
    assert (changes.trial, changes.current) == ("", "1.0-old.1")
    assert changes.lock() == {}


def test_a_release_of_another_python_is_neither_started_nor_returned_to(changes: Any) -> None:
    """The operating system was upgraded beneath it."""
    changes.record(about("1"), release="1.0-old", previous="", result="ok")
    changes.record(about("2"), release="1.1-new", previous="1.0-old", result="ok")
    assert changes.candidates() == ["1.0-old", "1.1-new"]
    (changes.srv / "releases/1.1-new/release.json").write_text('{"python": "3.0"}')
    with pytest.raises(Exception, match=f"1.1-new was installed for Python 3.0, and this host has {OURS}"):
        changes.prepare("1.1-new")
    assert changes.candidates() == ["1.0-old"]
