"""Backups: which backup and timeline a restore uses, and what it refuses."""

from __future__ import annotations

import itertools
import re
from typing import Any

import manifest
import pytest
import repository as repositories
import samples
import targets
from errors import BackupError
from repository import SEGMENT_BYTES, Backup, Repository, Timeline

NOW = 100_000.0


def backup(label: str, stop: int, segment: int, timeline: int = 1) -> Backup:
    """Return a backup that ended at a time, within a segment."""
    position = segment * SEGMENT_BYTES + 100
    return Backup(label, "full", stop - 10, stop, position - 50, position, timeline, 1000, 1, {})


def make(backups: list[Backup], archived: dict[tuple[int, int], float], *later: Timeline) -> Repository:
    """Return a repository with backups, archived segments and timelines after the first."""
    made = Repository("test")
    made.__dict__["info"] = {"repo": [{"key": 1, "status": {"code": 0, "message": "ok"}}]}
    made.__dict__["backups"] = backups
    made.__dict__["timelines"] = [Timeline(1, 0), *later]
    made.__dict__["segments"] = lambda number: archived  # noqa: ARG005
    return made


def archive(timeline: int, first: int, last: int, began: float) -> dict[tuple[int, int], float]:
    """Return segments of a timeline, each archived a minute after the one before."""
    return {(timeline, n): began + 60 * (n - first) for n in range(first, last + 1)}


# A week of one timeline: backups in the segments 10 and 50, the archive ends at 6000 with segment 99.
ONE = make([backup("A", 610, 10), backup("B", 3010, 50)], archive(1, 10, 99, 660))
# Restored at 4000 to segment 30: timeline 2, with a backup at 4100. Timeline 1 ends with segment 60.
TWO = make(
    [backup("A", 610, 10), backup("B", 3010, 50), backup("C", 4100, 31, 2)],
    archive(1, 10, 60, 660) | archive(2, 30, 90, 4010),
    Timeline(2, 4000, {1: 30 * SEGMENT_BYTES + 5000}),
)


def at(moment: float) -> targets.Target:
    """Return the target of a time."""
    return targets.Target("time", str(moment), moment)


@pytest.mark.parametrize(
    ("repository", "target", "label", "timeline"),
    [
        (ONE, at(700), "A", 1),
        (ONE, at(3000), "A", 1),
        (ONE, at(3011), "B", 1),
        (ONE, targets.Target("latest", ""), "B", 1),
        (ONE, targets.Target("backup", "A"), "A", 1),
        # What served before the restore, also where the restore has undone it.
        (TWO, at(1000), "A", 1),
        (TWO, at(3500), "B", 1),
        # Backup B is of the part that was undone.
        (TWO, at(4050), "A", 2),
        (TWO, at(5000), "C", 2),
        (TWO, targets.Target("latest", ""), "C", 2),
    ],
)
def test_a_plan_has_the_newest_backup_of_what_served(
    repository: Repository, target: targets.Target, label: str, timeline: int
) -> None:
    found = targets.plan(repository, target, NOW)
    assert (found.backup.label, found.timeline.number) == (label, timeline)


@pytest.mark.parametrize(
    ("repository", "target", "message"),
    [
        (ONE, at(600), "is before the oldest backup, which ended at 1970-01-01 00:10:10"),
        (ONE, at(NOW + 5), "is in the future: it is 1970-01-02 03:46:40 UTC"),
        (ONE, at(9000), "The repository ends at 1970-01-01 01:40:00 UTC, before 1970-01-01 02:30:00"),
        (ONE, targets.Target("backup", "C"), "There is no backup C; the newest are A, B."),
        (make([], {}), at(700), "There is no backup of test: the repository is empty"),
    ],
)
def test_what_cannot_be_reached_is_refused(
    repository: Repository, target: targets.Target, message: str
) -> None:
    with pytest.raises(BackupError, match=re.escape(message)):
        targets.plan(repository, target, NOW)


def test_a_gap_is_refused_for_what_is_after_it_only() -> None:
    archived = archive(1, 10, 99, 660)
    del archived[1, 30]
    gap = make([backup("A", 610, 10), backup("B", 3010, 50)], archived)
    assert targets.plan(gap, at(1700), NOW).backup.label == "A"
    assert targets.plan(gap, at(3500), NOW).backup.label == "B"
    with pytest.raises(
        BackupError, match=r"WAL after 1970-01-01 00:30:00 UTC is missing .* from backup A: restore"
    ):
        targets.plan(gap, at(2900), NOW)


@pytest.mark.parametrize(
    ("text", "kind", "moment"),
    [
        ("latest", "latest", None),
        ("time=1970-01-01T00:10:00", "time", 600.0),
        ("time=1970-01-01 02:10:00+02:00", "time", 600.0),
        ("restore_point=before-api-1.0@19700101T001000Z", "restore_point", 600.0),
        ("backup=20260101-000000F", "backup", None),
    ],
)
def test_targets(text: str, kind: str, moment: float | None) -> None:
    target = targets.parse_target(text)
    assert (target.kind, target.moment) == (kind, moment)


@pytest.mark.parametrize(
    "text", ["", "newest", "time=", "time=noon", "restore_point=mine", "backup=", "lsn=0/1"]
)
def test_no_targets(text: str) -> None:
    with pytest.raises(BackupError):
        targets.parse_target(text)


def test_a_restore_point_has_its_time_in_its_name() -> None:
    assert targets.point_name("before-api-1.0", 600) == "before-api-1.0@19700101T001000Z"
    with pytest.raises(BackupError, match="cannot name a restore point"):
        targets.point_name("before api", 600)


def test_the_options_of_a_restore() -> None:
    found = targets.plan(TWO, at(5000), NOW)
    assert found.options == [
        *("--set=C", "--repo=1", "--type=time", "--target=5000", "--target-action=promote"),
        "--target-timeline=0x2",
    ]
    latest = targets.plan(ONE, targets.Target("latest", ""), NOW)
    assert latest.options == ["--set=B", "--repo=1", "--type=default", "--target-timeline=0x1"]


def test_positions_and_segments() -> None:
    assert repositories.parse_lsn("2/5F000028") == 2 * 2**32 + 0x5F000028
    assert repositories.format_lsn(2 * 2**32 + 0x5F000028) == "2/5F000028"
    assert repositories.segment_number("000000010000000200000005") == 2 * 256 + 5
    history = "1\t0/5000000\tno recovery target specified\n\n2\t0/7000060\tbefore 2026-01-01\n"
    assert dict(repositories.parse_history(history)) == {1: 0x5000000, 2: 0x7000060}


def test_what_info_says(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {
        "annotation": {"fastmetal": '{"position":7}'},
        "archive": {"start": "000000010000000000000004", "stop": "000000020000000000000004"},
        "database": {"id": 1, "repo-key": 2},
        "error": False,
        "info": {"size": 9},
        "label": "L",
        "lsn": {"start": "0/4000028", "stop": "0/4000100"},
        "timestamp": {"start": 1, "stop": 2},
        "type": "full",
    }
    broken = {**entry, "error": True}
    status = [
        {"key": 1, "status": {"code": 0, "message": "ok"}},
        {"key": 2, "status": {"code": 3, "message": "gone"}},
    ]
    said: list[dict[str, Any]] = [{"name": "test", "repo": status, "backup": [entry, broken], "archive": []}]
    repository = Repository("test")
    monkeypatch.setattr(repository, "run", lambda *_: __import__("json").dumps(said))
    (found,) = repository.backups
    assert (found.label, found.timeline, found.repository, found.manifest) == ("L", 2, 2, {"position": 7})
    assert repository.readable == [1]
    assert repository.faults == ["repository 2: gone"]
    assert repository.archived is None


class Server:
    """A server whose transactions in progress come from a list, one entry for each look."""

    position = 7

    def __init__(self, *snapshots: str) -> None:
        self.snapshots = list(snapshots)
        self.statements: list[str] = []

    def query(self, sql: str) -> str:
        """Answer as psql."""
        return self.run(sql)

    def run(self, sql: str) -> str:
        """Answer as a session."""
        self.statements.append(sql)
        return self.snapshots.pop(0) if "snapshot" in sql else ""


@pytest.mark.parametrize(
    ("snapshots", "position", "attempts"),
    [
        (["9:9:", "9:9:", "9:9:"], 7, 1),
        # A transaction with writes is open, or one has begun in between, or the databases differ.
        (["8:9:8", "8:9:8", "8:9:8", "9:9:", "9:9:", "9:9:"], 7, 2),
        (["9:9:", "9:9:", "9:10:9", "10:10:", "10:10:", "10:10:"], 7, 2),
        (["9:9:", "10:10:", "10:10:", "10:10:", "10:10:", "10:10:"], 7, 2),
    ],
)
def test_the_position_of_a_manifest_is_exact(
    monkeypatch: pytest.MonkeyPatch, snapshots: list[str], position: int, attempts: int
) -> None:
    monkeypatch.setattr(manifest, "PAUSE_SECONDS", 0)
    server: Any = Server(*snapshots)
    assert manifest.exact_position(server, [server, server]) == position
    assert sum(statement.startswith("BEGIN") for statement in server.statements) == 2 * attempts


def test_a_server_that_always_writes_has_no_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PAUSE_SECONDS", 0)
    server: Any = Server(*["8:9:8"] * (2 * manifest.ATTEMPTS))
    assert manifest.exact_position(server, [server]) == 0


def test_samples_stay_few_over_two_weeks() -> None:
    kept: list[dict[str, Any]] = []
    for minute in range(20 * 24 * 60):
        kept.append({"time": 60.0 * minute})
        if minute % 60 == 0:
            kept = samples.thinned(kept, 60.0 * minute)
    now = kept[-1]["time"]
    times = [sample["time"] for sample in samples.thinned(kept, now)]
    assert times == sorted(times)
    assert len(times) < 2100
    assert [now - time for time in times[-61:]] == [60.0 * n for n in range(60, -1, -1)]
    assert max(after - before for before, after in itertools.pairwise(times)) <= 1200
    assert 13.9 * 86400 < now - times[0] <= 14 * 86400
