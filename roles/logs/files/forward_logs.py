#!/usr/bin/python3
"""Put the lines of log files into the journal as they come: each line, over rotations, restarts and crashes.

How far each file was read is kept after every batch, so a crash repeats a batch at most and loses nothing.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

JOURNAL = "/run/systemd/journal/socket"
PAUSE_SECONDS = 0.5
# Whoever writes goes on with a renamed file until it is told to open the new one.
RENAMED_SECONDS = 60
BATCH_BYTES = 1 << 20


class Follower:
    """One log file: what stands under its name, and what did so until a moment ago."""

    def __init__(self, path: Path, positions: dict[str, int] | None) -> None:
        self.path = path
        # {inode: offset}, None before the first run: what was there before is no news.
        self.positions = positions
        self.renamed: dict[str, float] = {}

    def files(self) -> dict[str, Path]:
        """Return {inode: file} of the file and of the one it was rotated to."""
        candidates = (self.path.with_name(f"{self.path.name}.1"), self.path)
        return {str(file.stat().st_ino): file for file in candidates if file.exists()}

    def new_lines(self) -> Iterator[bytes]:
        """Yield what was added since the last time; the positions move with it."""
        files = self.files()
        current = next((inode for inode, file in files.items() if file == self.path), None)
        if self.positions is None:
            self.positions = {current: self.path.stat().st_size} if current else {}
        if current:
            self.positions.setdefault(current, 0)
        for inode in list(self.positions):
            if inode in files:
                yield from self._read(inode, files[inode], self.positions)
            if inode != current and self._is_over(inode, gone=inode not in files):
                del self.positions[inode]

    def _is_over(self, inode: str, *, gone: bool) -> bool:
        since = self.renamed.setdefault(inode, time.monotonic())
        if gone or time.monotonic() - since > RENAMED_SECONDS:
            del self.renamed[inode]
            return True
        return False

    @staticmethod
    def _read(inode: str, file: Path, positions: dict[str, int]) -> Iterator[bytes]:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < positions[inode]:
                positions[inode] = 0  # it was emptied
            stream.seek(positions[inode])
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                yield line.rstrip(b"\n")
                positions[inode] += len(line)


def send(journal: socket.socket, identifier: str, line: bytes) -> None:
    """Give the journal a line in its own protocol; waits while it is busy."""
    entry = b"PRIORITY=6\nSYSLOG_IDENTIFIER=" + identifier.encode() + b"\nMESSAGE=" + line + b"\n"
    try:
        journal.send(entry)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        # Larger than a datagram: the journal takes it from sealed memory.
        memory = os.memfd_create("line", os.MFD_ALLOW_SEALING)
        try:
            os.write(memory, entry)
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
            journal.sendmsg(
                [b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]).tobytes())]
            )
        finally:
            os.close(memory)


def keep(path: Path, followers: dict[str, Follower]) -> None:
    """Note how far each file was read, in one move."""
    candidate = path.with_name("positions.new")
    candidate.write_text(json.dumps({name: follower.positions for name, follower in followers.items()}))
    candidate.rename(path)


def main() -> None:
    """Follow the files for ever; the configuration ({path: identifier}) is the only argument."""
    identifiers: dict[str, str] = json.loads(Path(sys.argv[1]).read_text())
    kept = Path(os.environ["STATE_DIRECTORY"]) / "positions.json"
    positions = json.loads(kept.read_text()) if kept.exists() else {}
    followers = {path: Follower(Path(path), positions.get(path)) for path in identifiers}
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.connect(JOURNAL)
    noted = ""
    while True:
        for path, follower in followers.items():
            size = 0
            for line in follower.new_lines():
                send(journal, identifiers[path], line)
                size += len(line)
                if size > BATCH_BYTES:
                    keep(kept, followers)
                    size = 0
        state = json.dumps([follower.positions for follower in followers.values()])
        if state != noted:
            keep(kept, followers)
            noted = state
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
