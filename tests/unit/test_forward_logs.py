"""forward_logs sends every line to the journal once, and a crash repeats at most one batch."""

from __future__ import annotations

import array
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import forward_logs
import pytest
from follow import Follower


class Journal:
    """A journal's socket that keeps the messages."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def entries(self) -> list[tuple[str, str]]:
        """Return the (identifier, message) of the entries since the last call."""
        return [(fields["SYSLOG_IDENTIFIER"], fields["MESSAGE"]) for fields in self.fields()]

    def fields(self) -> list[dict[str, str]]:
        """Return the fields of the entries since the last call."""
        found: list[dict[str, str]] = []
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(1 << 20, 1024)
            except BlockingIOError:
                return found
            for _, _, content in ancillary:
                (descriptor,) = array.array("i", content)
                with os.fdopen(descriptor, "rb") as memory:
                    data = os.pread(memory.fileno(), 1 << 24, 0)
            found.append(dict(line.split("=", 1) for line in data.decode().splitlines()))


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """A journal in place of the host's own."""
    monkeypatch.setattr(forward_logs, "JOURNAL", str(tmp_path / "journal"))
    journal = Journal(tmp_path / "journal")
    yield journal
    journal.socket.close()


class StopError(Exception):
    """Ends the endless loop."""


class Program:
    """The program with one log, run for one round at a time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = folder / "access.log"
        self.log.touch()
        self.positions = folder / "positions.json"
        settings = folder / "logs.json"
        settings.write_text(json.dumps({str(self.log): "nginx"}))
        monkeypatch.setattr(sys, "argv", ["forward_logs", str(settings)])
        monkeypatch.setenv("STATE_DIRECTORY", str(folder))

        def stop(_: float) -> None:
            raise StopError

        monkeypatch.setattr(time, "sleep", stop)

    def run(self) -> None:
        """Start the program and stop it after one round."""
        with pytest.raises(StopError):
            forward_logs.main()

    def append(self, text: str) -> None:
        """Add text to the log."""
        with self.log.open("a") as stream:
            stream.write(text)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A program that has seen its empty log."""
    return Program(tmp_path, monkeypatch)


def test_forwards_each_line_once_over_restarts(program: Program, journal: Journal) -> None:
    program.append("before the first start\n")
    program.run()
    assert journal.entries() == []
    program.append("one\ntwo\nhal")
    program.run()
    assert journal.entries() == [("nginx", "one"), ("nginx", "two")]
    program.append("f\n")
    program.run()
    program.run()
    assert journal.entries() == [("nginx", "half")]


def test_forwards_the_end_of_a_rotated_file(program: Program, journal: Journal) -> None:
    program.run()
    program.append("one\n")
    program.log.rename(program.log.with_name("access.log.1"))
    program.append("two\n")
    program.run()
    assert [message for _, message in journal.entries()] == ["one", "two"]


def test_a_line_larger_than_a_datagram_arrives_whole(program: Program, journal: Journal) -> None:
    program.run()
    long = "x" * (1 << 20)
    program.append(f"{long}\nnext\n")
    program.run()
    assert [message for _, message in journal.entries()] == [long, "next"]


def test_a_crash_repeats_at_most_one_batch(
    program: Program, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.run()
    monkeypatch.setattr(forward_logs, "BATCH_BYTES", 5)
    send = forward_logs.send
    sent: list[bytes] = []

    def crash(connection: socket.socket, identifier: str, line: bytes) -> None:
        if len(sent) == 5:
            raise StopError
        sent.append(line)
        send(connection, identifier, line)

    monkeypatch.setattr(forward_logs, "send", crash)
    program.append("".join(f"{number}22\n" for number in range(8)))
    program.run()
    monkeypatch.setattr(forward_logs, "send", send)
    program.run()
    messages = [message for _, message in journal.entries()]
    assert list(dict.fromkeys(messages)) == [f"{number}22" for number in range(8)]
    # Two lines are a batch; the crash came in the third one.
    assert len(messages) <= 8 + 2


def test_does_not_save_positions_that_have_not_moved(
    program: Program, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal.entries() == []
    rounds: list[int] = []
    saved: list[int] = []
    save = forward_logs.save

    def count(path: Path, followers: dict[str, Follower]) -> None:
        saved.append(len(rounds))
        save(path, followers)

    def next_round(_: float) -> None:
        rounds.append(1)
        if len(rounds) == 3:
            program.append("one\n")
        if len(rounds) == 6:
            raise StopError

    monkeypatch.setattr(forward_logs, "save", count)
    monkeypatch.setattr(time, "sleep", next_round)
    program.run()
    assert saved == [0, 3]


def test_bytes_that_are_no_utf8_are_replaced(program: Program, journal: Journal) -> None:
    program.run()
    with program.log.open("ab") as stream:
        stream.write(b'{"user_agent":"caf\xe9"}\n')
    program.run()
    assert journal.entries() == [("nginx", '{"user_agent":"caf\ufffd"}')]


def test_severities_of_postgres_become_priorities(program: Program, journal: Journal) -> None:
    program.run()
    for severity in ("LOG", "WARNING", "ERROR", "FATAL", "PANIC"):
        program.append(json.dumps({"error_severity": severity}, separators=(",", ":")) + "\n")
    program.append('{"status":500}\n')
    program.run()
    assert [fields["PRIORITY"] for fields in journal.fields()] == ["6", "4", "3", "2", "0", "6"]
