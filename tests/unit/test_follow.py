"""No line of a log is lost or read twice over rotations, truncations and restarts."""

from __future__ import annotations

import time
from pathlib import Path

import follow
import pytest
from follow import Follower


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log file with one line."""
    file = tmp_path / "access.log"
    file.write_text("before\n")
    return file


def append(file: Path, text: str) -> None:
    """Add text to a file."""
    with file.open("a") as stream:
        stream.write(text)


def read(follower: Follower) -> list[str]:
    """Return the new lines."""
    return [line.decode() for line in follower.new_lines()]


def test_starts_at_the_end_of_the_file(log: Path) -> None:
    follower = Follower(log, None)
    assert read(follower) == []
    append(log, "one\ntwo\n")
    assert read(follower) == ["one", "two"]
    assert read(follower) == []


def test_waits_for_the_end_of_a_line(log: Path) -> None:
    follower = Follower(log, None)
    assert read(follower) == []
    append(log, "on")
    assert read(follower) == []
    append(log, "e\n")
    assert read(follower) == ["one"]


def test_continues_at_saved_positions(log: Path) -> None:
    first = Follower(log, None)
    assert read(first) == []
    append(log, "one\n")
    assert read(Follower(log, first.positions)) == ["one"]


def test_reads_the_renamed_file_before_the_new_one(log: Path) -> None:
    follower = Follower(log, None)
    assert read(follower) == []
    append(log, "one\n")
    renamed = log.rename(log.with_name("access.log.1"))
    append(log, "three\n")
    append(renamed, "two\n")
    assert read(follower) == ["one", "two", "three"]
    append(renamed, "late\n")
    assert read(follower) == ["late"]


def test_forgets_a_renamed_file_after_a_minute(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(log, None)
    assert read(follower) == []
    renamed = log.rename(log.with_name("access.log.1"))
    append(log, "one\n")
    assert read(follower) == ["one"]
    assert follower.positions
    assert len(follower.positions) == 2
    later = time.monotonic() + follow.RENAMED_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert read(follower) == []
    append(renamed, "too late\n")
    assert read(follower) == []
    assert list(follower.positions) == [str(log.stat().st_ino)]


def test_forgets_a_renamed_file_that_is_gone(log: Path) -> None:
    follower = Follower(log, None)
    assert read(follower) == []
    log.rename(log.with_name("gone"))
    append(log, "one\n")
    assert read(follower) == ["one"]
    assert list(follower.positions or {}) == [str(log.stat().st_ino)]


def test_starts_again_in_a_truncated_file(log: Path) -> None:
    follower = Follower(log, None)
    assert read(follower) == []
    log.write_text("new\n")
    assert read(follower) == ["new"]


def test_reads_a_file_that_appears_later_from_its_start(log: Path) -> None:
    log.unlink()
    follower = Follower(log, None)
    assert read(follower) == []
    append(log, "one\n")
    assert read(follower) == ["one"]


def test_repeats_the_line_in_which_the_reader_stopped(log: Path) -> None:
    """A crash between two lines repeats the first of them and loses none."""
    follower = Follower(log, {str(log.stat().st_ino): 0})
    append(log, "one\n")
    lines = follower.new_lines()
    assert next(lines) == b"before"
    assert read(Follower(log, follower.positions)) == ["before", "one"]
