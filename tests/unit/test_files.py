"""A file is replaced in one step."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from files import write_atomically


def test_writes_content_and_mode(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("old")
    file.chmod(0o644)
    umask = os.umask(0o077)
    try:
        write_atomically(file, "one\r\nzwölf\n", 0o640)
    finally:
        os.umask(umask)
    assert file.read_bytes() == "one\r\nzwölf\n".encode()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [file]


def test_keeps_the_file_if_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_never_shows_a_part_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    seen = []
    sync = os.fsync

    def look(descriptor: int) -> None:
        seen.append((file.read_text(), os.fstat(descriptor).st_size))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(file, "new content")
    assert seen == [("old", len("new content"))]


def test_is_never_readable_by_others_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    create = os.open

    def look(path: Any, flags: int, mode: int = 0o777) -> int:
        modes.append(mode)
        return create(path, flags, mode)

    monkeypatch.setattr(os, "open", look)
    write_atomically(tmp_path / "secret", "x", 0o600)
    assert modes == [0o600]


def test_two_writers_do_not_share_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"

    def sync(_: int) -> None:
        """Write the file a second time in the middle of the first."""
        monkeypatch.undo()
        write_atomically(file, "second")

    monkeypatch.setattr(os, "fsync", sync)
    write_atomically(file, "first")
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_calls_neither_fsync_nor_chown_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandboxes of our services forbid chown."""
    calls: list[Any] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    monkeypatch.setattr(os, "fchown", lambda _, owner, group: calls.append((owner, group)))
    write_atomically(tmp_path / "file", "x", sync=False)
    assert calls == []
    write_atomically(tmp_path / "file", "x", group=7, sync=False)
    assert calls == [(-1, 7)]
