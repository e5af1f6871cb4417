"""Follow a log file. Standard library only: programs outside Ansible get a copy of this file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

# A writer goes on with the renamed file until it reopens its log.
RENAMED_SECONDS = 60


class Follower:
    """Yields the lines that are added to a log file, over rotations to FILE.1 and truncations."""

    def __init__(self, path: Path, positions: dict[str, int] | None) -> None:
        """Start at the positions of an earlier run, {inode: offset}; None skips what the file holds now."""
        self.path = path
        self.positions = positions
        self._renamed: dict[str, float] = {}

    def new_lines(self) -> Iterator[bytes]:
        """Yield the complete lines since the last call; each moves the position when the next is taken."""
        files = self._files()
        current = next((inode for inode, file in files.items() if file == self.path), None)
        if self.positions is None:
            self.positions = {current: self.path.stat().st_size} if current else {}
        if current:
            self.positions.setdefault(current, 0)
        for inode in list(self.positions):
            if inode in files:
                yield from self._read(inode, files[inode], self.positions)
            if inode != current and self._is_finished(inode, gone=inode not in files):
                del self.positions[inode]

    def _files(self) -> dict[str, Path]:
        """Return {inode: file} of the rotated file and of the present one, as far as they exist."""
        candidates = (self.path.with_name(f"{self.path.name}.1"), self.path)
        return {str(file.stat().st_ino): file for file in candidates if file.exists()}

    def _is_finished(self, inode: str, *, gone: bool) -> bool:
        """Return whether a renamed file gets no more lines."""
        since = self._renamed.setdefault(inode, time.monotonic())
        if gone or time.monotonic() - since > RENAMED_SECONDS:
            del self._renamed[inode]
            return True
        return False

    @staticmethod
    def _read(inode: str, file: Path, positions: dict[str, int]) -> Iterator[bytes]:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < positions[inode]:
                positions[inode] = 0  # it was truncated
            stream.seek(positions[inode])
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                yield line.rstrip(b"\n")
                positions[inode] += len(line)
