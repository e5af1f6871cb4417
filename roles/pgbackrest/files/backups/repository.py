"""What pgBackRest's repositories hold: backups and the archived write-ahead log (WAL)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from commands import as_postgres
from errors import BackupError

# The manifest of a backup, which the drill compares.
ANNOTATION = "fastmetal"
# Status codes of `info`: fine, and no backup yet.
READABLE = (0, 2)
SEGMENT_BYTES = 16 * 1024 * 1024
SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})-[0-9a-f]+(\.\w+)?$")
HISTORY = re.compile(r"([0-9A-F]{8})\.history$")
FETCH = Path(__file__).with_name("fetch-wal")
# What pgBackRest prints before the sentence that matters.
NOISE = re.compile(r"^.*?(ERROR|WARN): (\[\d+\]: )?", re.DOTALL)


def local_options(data: Path) -> list[str]:
    """Return the options by which pgBackRest takes a data directory of this host for the cluster's."""
    return [f"--pg1-path={data}", "--reset-pg1-host"]


def parse_lsn(text: str) -> int:
    """Return a position in the WAL, such as 1/5F000028, in bytes."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def format_lsn(position: int) -> str:
    """Return a position as Postgres writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


@dataclass(frozen=True)
class Backup:
    """A backup. Times are seconds since 1970, positions bytes of the WAL, sizes bytes."""

    label: str
    kind: str
    start: int
    stop: int
    start_lsn: int
    stop_lsn: int
    timeline: int
    size: int
    repository: int
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Timeline:
    """A timeline: when it began to serve, and at which positions its ancestors end ({timeline: bytes})."""

    number: int
    begun: float
    ancestors: Mapping[int, int] = field(default_factory=dict)

    def contains(self, timeline: int, position: int) -> bool:
        """Return whether a position of a timeline is part of this one's past."""
        return timeline == self.number or position <= self.ancestors.get(timeline, -1)


class Repository:
    """pgBackRest's repositories of one stanza; of several, the first answers what they have in common."""

    def __init__(self, stanza: str) -> None:
        self.stanza = stanza
        self._archives: dict[int, dict[str, dict[str, Any]]] = {}

    def run(self, *words: str) -> str:
        """Run pgBackRest for the stanza and return what it prints."""
        try:
            return as_postgres("pgbackrest", f"--stanza={self.stanza}", *words)
        except BackupError as error:
            raise BackupError(NOISE.sub("", str(error))) from error

    def fetch_command(self, number: int, data: Path | None = None) -> str:
        """Return the restore_command of Postgres; data: another data directory than the cluster's."""
        words = [str(FETCH), self.stanza, str(number), "%f", '"%p"', *(local_options(data) if data else ())]
        return " ".join(words)

    def archive(self, number: int) -> dict[str, dict[str, Any]]:
        """Return {path: its type, size and time} of the newest archive in a repository."""
        if number not in self._archives:
            words = ("repo-ls", "--recurse", "--output=json", self.archive_path(number))
            self._archives[number] = json.loads(self.run(f"--repo={number}", *words))
        return self._archives[number]

    def archive_path(self, number: int) -> str:
        """Return the newest directory of archived WAL in a repository, such as archive/production/17-1."""
        archives = [
            entry for entry in self.info.get("archive", ()) if entry["database"]["repo-key"] == number
        ]
        if not archives:
            raise BackupError(f"Repository {number} has no archive: look at `fastmetal-backups status`.")
        newest = max(archives, key=lambda entry: int(entry["database"]["id"]))
        return f"archive/{self.stanza}/{newest['id']}"

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """Return what `pgbackrest info` says of the stanza; empty if it does not exist."""
        # A message may quote what a wrong passphrase makes of a file.
        stanzas: list[Mapping[str, Any]] = json.loads(self.run("info", "--output=json"), strict=False)
        return next((stanza for stanza in stanzas if stanza["name"] == self.stanza), {})

    @property
    def faults(self) -> list[str]:
        """Return what is wrong with each repository, other than that it is still empty."""
        found = []
        for repository in self.info.get("repo", ()):
            status = repository["status"]
            if status["code"] not in READABLE:
                message = " ".join(status["message"].split())
                if "unable to load info file" in message and "FormatError" in message:
                    message = "it cannot be decrypted: is pgbackrest_passphrase the one of its first backup?"
                found.append(f"repository {repository['key']}: {message[:300]}")
        return found

    @property
    def readable(self) -> list[int]:
        """Return the repositories that answer; raise BackupError if none does."""
        found = [entry["key"] for entry in self.info.get("repo", ()) if entry["status"]["code"] in READABLE]
        if not found:
            raise BackupError("No repository answers: " + ("; ".join(self.faults) or "there is none"))
        return found

    @cached_property
    def backups(self) -> list[Backup]:
        """Return the usable backups, oldest first."""
        return sorted(
            (self._backup(entry) for entry in self.info.get("backup", ()) if not entry.get("error")),
            key=lambda backup: backup.stop,
        )

    @staticmethod
    def _backup(entry: Mapping[str, Any]) -> Backup:
        return Backup(
            label=entry["label"],
            kind=entry["type"],
            start=entry["timestamp"]["start"],
            stop=entry["timestamp"]["stop"],
            start_lsn=parse_lsn(entry["lsn"]["start"]),
            stop_lsn=parse_lsn(entry["lsn"]["stop"]),
            timeline=int(entry["archive"]["stop"][:8], 16),
            size=entry["info"]["size"],
            repository=entry["database"]["repo-key"],
            manifest=json.loads(entry.get("annotation", {}).get(ANNOTATION, "{}")),
        )

    @property
    def archived(self) -> tuple[int, int] | None:
        """Return the timeline of the newest archived segment and the position at which it ends."""
        known = [entry for entry in self.info.get("archive", ()) if entry.get("max")]
        if not known:
            return None
        # After `adopt` an older archive may be of another cluster with later timelines.
        current = max(entry["database"]["id"] for entry in known)
        name = max(entry["max"] for entry in known if entry["database"]["id"] == current)
        return int(name[:8], 16), (segment_number(name) + 1) * SEGMENT_BYTES

    def segments(self, number: int) -> dict[tuple[int, int], float]:
        """Return {(timeline, number of the segment): when it was archived} of a repository."""
        found = {}
        for path, entry in self.archive(number).items():
            if match := SEGMENT.match(path.rpartition("/")[2]):
                name = "".join(match.group(1, 2, 3))
                # Listings have whole seconds.
                found[int(name[:8], 16), segment_number(name)] = float(entry["time"]) + 1
        return found

    def archived_at(self, timeline: Timeline) -> float:
        """Return when the newest segment of a timeline was archived."""
        times = [
            time
            for number in self.readable
            for (owner, _), time in self.segments(number).items()
            if owner == timeline.number
        ]
        return max([*times, timeline.begun])

    @cached_property
    def timelines(self) -> list[Timeline]:
        """Return the timelines, oldest first: each after the first began when its history was archived."""
        number = self.readable[0]
        found = [Timeline(1, 0)]
        for path, entry in sorted(self.archive(number).items()):
            if match := HISTORY.match(path.rpartition("/")[2]):
                text = self.run(f"--repo={number}", "repo-get", f"{self.archive_path(number)}/{path}")
                found.append(Timeline(int(match[1], 16), float(entry["time"]), dict(parse_history(text))))
        return found

    def live_at(self, moment: float) -> Timeline:
        """Return the timeline that served at a moment."""
        return [timeline for timeline in self.timelines if timeline.begun <= moment][-1]


def segment_number(name: str) -> int:
    """Return the number of a segment from the 24 digits of its name."""
    return int(name[8:16], 16) * 0x100 + int(name[16:24], 16)


def parse_history(text: str) -> Iterator[tuple[int, int]]:
    """Yield the timelines before one and the positions at which they end, from its history file."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0].isdigit():
            yield int(words[0]), parse_lsn(words[1])
