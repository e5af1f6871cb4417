"""The backup host: what it archives of the WAL that it receives, and which commands it takes."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import receive
from errors import BackupError
from receive import Receiver
from repository import SEGMENT_BYTES, Repository

SEGMENT = "00000002000000000000001{}"


class Server:
    """A server that answers a query by the first part that it contains."""

    def __init__(self, timeline: int, slots: str) -> None:
        self.timeline, self.slots = timeline, slots
        self.asked: list[str] = []

    def query(self, sql: str) -> str:
        self.asked.append(sql)
        return (
            "42" if "system_identifier" in sql else self.slots if "FROM pg_replication_slots" in sql else ""
        )


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """Return a receiver with a server of timeline 2, whose pushed files are in the list `pushed`."""
    made = Receiver.__new__(Receiver)
    made.repository, made.folder, made.fault = Repository("test"), tmp_path, ""
    made.repository.__dict__["info"] = {"db": [{"system-id": 42}]}
    made.cluster = Server(2, f"{receive.SLOT}\treserved")  # type: ignore[assignment]
    pushed: list[str] = []
    made.__dict__["pushed"] = pushed
    monkeypatch.setattr(Repository, "run", lambda _, *words: pushed.append(Path(words[-1]).name))
    return made


def files(receiver: Receiver, *names: str) -> None:
    """Write empty files into the directory of what is received."""
    for name in names:
        (receiver.folder / name).touch()


def test_complete_segments_and_histories_are_archived_in_order(receiver: Receiver) -> None:
    partial = SEGMENT.format(3) + ".partial"
    files(receiver, SEGMENT.format(2), "00000002.history", SEGMENT.format(1), partial, "other")
    receiver.archive()
    assert receiver.__dict__["pushed"] == ["00000002.history", SEGMENT.format(1), SEGMENT.format(2)]
    assert {file.name for file in receiver.folder.iterdir()} == {partial, "other"}


def test_a_segment_stays_if_it_cannot_be_archived(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> str:
        raise BackupError("away")

    monkeypatch.setattr(Repository, "run", refuse)
    files(receiver, SEGMENT.format(1))
    with pytest.raises(BackupError, match="away"):
        receiver.archive()
    assert (receiver.folder / SEGMENT.format(1)).exists()
    # The stream goes on, and the journal has the reason once.
    receiver.try_to_archive()
    receiver.try_to_archive()
    assert capsys.readouterr().err == "The WAL cannot be archived: away\n"


@pytest.mark.parametrize(("timeline", "abandoned"), [(2, False), (3, True)])
def test_the_last_segment_of_a_timeline_is_archived_once_the_server_has_left_it(
    receiver: Receiver, timeline: int, abandoned: bool
) -> None:
    files(receiver, SEGMENT.format(3) + ".partial")
    receiver.cluster.timeline = timeline  # type: ignore[misc]
    assert receiver.is_abandoned() == abandoned
    receiver.give_up_partial()
    assert receiver.__dict__["pushed"] == [SEGMENT.format(3)]
    assert not list(receiver.folder.iterdir())


@pytest.mark.parametrize(
    ("slots", "created", "dropped"),
    [
        (f"{receive.SLOT}\treserved", False, False),
        (f"{receive.SLOT}\textended", False, False),
        ("other\treserved", True, False),
        ("", True, False),
        (f"{receive.SLOT}\tlost", True, True),
    ],
)
def test_the_slot_is_created_if_it_is_missing_or_lost(
    receiver: Receiver, slots: str, created: bool, dropped: bool
) -> None:
    receiver.cluster.slots = slots  # type: ignore[attr-defined]
    receiver.require_slot()
    asked = " ".join(receiver.cluster.asked)  # type: ignore[attr-defined]
    assert ("pg_create_physical" in asked, "pg_drop" in asked) == (created, dropped)


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ([], "has no stanza test yet: run site.yml"),
        ([{"system-id": 42}, {"system-id": 43}], "has backups of another cluster than the database host's"),
    ],
)
def test_wal_of_another_cluster_is_not_received(
    receiver: Receiver, known: list[dict[str, int]], sentence: str
) -> None:
    receiver.require_known_cluster()
    receiver.repository.__dict__["info"] = {"db": known}
    with pytest.raises(BackupError, match=sentence):
        receiver.require_known_cluster()


def test_the_newest_segment_is_of_the_current_cluster() -> None:
    """After `adopt`, an archive of the former cluster may have later timelines."""
    repository = Repository("test")
    former = {"database": {"id": 1}, "max": "0000000400000000000000A0"}
    repository.__dict__["info"] = {"archive": [former, {"database": {"id": 2}, "max": None}]}
    assert repository.archived == (4, 0xA1 * SEGMENT_BYTES)
    repository.__dict__["info"]["archive"][1]["max"] = "000000010000000000000001"
    assert repository.archived == (1, 2 * SEGMENT_BYTES)


LOCAL: dict[str, Any] = {"backup_host": "", "database": {}}


@pytest.mark.parametrize(
    ("settings", "words", "sentence"),
    [
        (LOCAL, {"command": "backup"}, ""),
        (LOCAL, {"command": "receive"}, "Only a backup host receives WAL"),
        ({"backup_host": "store1", "database": {}}, {"command": "drill"}, "run it on store1."),
        ({"backup_host": "store1", "database": {}}, {"command": "restore", "beside": False}, ""),
        ({"backup_host": "", "database": {"name": "data1"}}, {"command": "point"}, "run it on data1."),
        (
            {"backup_host": "", "database": {"name": "data1"}},
            {"command": "restore", "beside": False},
            "run it on data1.",
        ),
        ({"backup_host": "", "database": {"name": "data1"}}, {"command": "restore", "beside": True}, ""),
    ],
)
def test_commands_belong_to_a_host(settings: dict[str, Any], words: dict[str, Any], sentence: str) -> None:
    program = load_program()
    options = argparse.Namespace(**words)
    if not sentence:
        program.require_host(settings, options)
        return
    with pytest.raises(BackupError, match=sentence):
        program.require_host(settings, options)


def load_program() -> Any:
    """Return the program's __main__ as a module."""
    path = Path(__file__).parents[2] / "roles/pgbackrest/files/backups/__main__.py"
    spec = importlib.util.spec_from_file_location("fastmetal_backups", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
