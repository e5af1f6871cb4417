"""What a restore aims at, and from which backup and timeline it gets there."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from errors import BackupError
from repository import SEGMENT_BYTES, Backup, Repository, Timeline

FORMS = "latest, time=2026-05-04T13:45:00+00:00, restore_point=NAME or backup=LABEL"
# A restore point's name ends with its time, by which its backup and its timeline are found.
POINT_TIME = "%Y%m%dT%H%M%SZ"
POINT = re.compile(r"^[A-Za-z0-9._-]{1,46}@(\d{8}T\d{6}Z)$")
LABEL = re.compile(r"^[A-Za-z0-9._-]{1,40}$")


@dataclass(frozen=True)
class Target:
    """A parsed target. moment: seconds since 1970, None for latest and for a backup."""

    kind: str
    value: str
    moment: float | None = None


@dataclass(frozen=True)
class Plan:
    """How to reach a target. moment: of the restored state, as far as it is known beforehand."""

    target: Target
    backup: Backup
    timeline: Timeline
    moment: float

    @property
    def options(self) -> list[str]:
        """Return the options of `pgbackrest restore`."""
        kinds = {
            "latest": "default",
            "time": "time",
            "restore_point": "name",
            "backup": "immediate",
            "lsn": "lsn",
        }
        words = [f"--set={self.backup.label}", f"--repo={self.backup.repository}"]
        words.append(f"--type={kinds[self.target.kind]}")
        if self.target.kind in ("time", "restore_point", "lsn"):
            words.append(f"--target={self.target.value}")
        if self.target.kind == "lsn":
            # Not what begins there.
            words.append("--target-exclusive")
        if self.target.kind != "latest":
            words.append("--target-action=promote")
        # The end of a backup is on its own timeline anyway.
        return (
            words
            if self.target.kind == "backup"
            else [*words, f"--target-timeline=0x{self.timeline.number:X}"]
        )


def point_name(label: str, now: float) -> str:
    """Return the name of a restore point that is set now."""
    if not LABEL.match(label):
        raise BackupError(
            f'"{label}" cannot name a restore point: use up to 40 letters, digits, ".", "-" and "_".'
        )
    return f"{label}@{datetime.datetime.fromtimestamp(now, datetime.UTC):{POINT_TIME}}"


def parse_target(text: str) -> Target:
    """Return a target; raise BackupError if the text is none."""
    kind, _, value = text.partition("=")
    if text == "latest":
        return Target("latest", "")
    if kind == "time" and value:
        moment = parse_time(value)
        return Target("time", moment.isoformat(sep=" "), moment.timestamp())
    if kind == "restore_point" and value:
        found = POINT.match(value)
        if not found:
            raise BackupError(
                f"{value} is no restore point of `fastmetal-backups point`, which end with their time:"
                " restore to a time=."
            )
        set_at = datetime.datetime.strptime(found[1], POINT_TIME).replace(tzinfo=datetime.UTC)
        return Target("restore_point", value, set_at.timestamp())
    if kind == "backup" and value:
        return Target("backup", value)
    raise BackupError(f'"{text}" is no target: give {FORMS}.')


def parse_time(text: str) -> datetime.datetime:
    """Return a time; without an offset it is UTC."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise BackupError(f'"{text}" is no time: write 2026-05-04T13:45:00+00:00.') from error
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def show_time(moment: float) -> str:
    """Return a moment for people."""
    return f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def plan(repository: Repository, target: Target, now: float) -> Plan:
    """Return how to reach a target; raise BackupError if the repository cannot."""
    backups = repository.backups
    if not backups:
        raise BackupError(
            f"There is no backup of {repository.stanza}:"
            f" {'; '.join(repository.faults) or 'the repository is empty'}"
        )
    if target.kind == "backup":
        return _plan_backup(repository, target)
    moment = now if target.moment is None else target.moment
    if moment > now:
        raise BackupError(f"{show_time(moment)} is in the future: it is {show_time(now)}.")
    if moment < backups[0].stop:
        raise BackupError(
            f"{show_time(moment)} is before the oldest backup, which ended at {show_time(backups[0].stop)}."
        )
    timeline = repository.live_at(moment)
    usable = [
        backup
        for backup in backups
        if backup.stop <= moment and timeline.contains(backup.timeline, backup.stop_lsn)
    ]
    if not usable:
        raise BackupError(
            f"No backup before {show_time(moment)} belongs to what served then (timeline {timeline.number}):"
            f" the next one is of {show_time(min(b.stop for b in backups if b.stop > moment))}."
        )
    backup = usable[-1]
    found = Plan(target, backup, timeline, moment)
    _refuse_gap(repository, found)
    return found


def _plan_backup(repository: Repository, target: Target) -> Plan:
    for backup in repository.backups:
        if backup.label == target.value:
            timeline = next(one for one in repository.timelines if one.number == backup.timeline)
            return Plan(target, backup, timeline, backup.stop)
    labels = ", ".join(backup.label for backup in repository.backups[-5:])
    raise BackupError(f"There is no backup {target.value}; the newest are {labels}.")


def _refuse_gap(repository: Repository, found: Plan) -> None:
    """Raise BackupError if WAL between the backup and the target is missing, or ends before it."""
    segments = repository.segments(found.backup.repository)
    current = found.backup.stop_lsn // SEGMENT_BYTES
    newest = max((number for _, number in segments), default=current)
    archived = float(found.backup.stop)
    for number in range(current, newest + 1):
        # The timeline that reaches furthest back into the target's past has this segment.
        owner = _owner(found.timeline, number)
        time_of = segments.get((owner, number))
        if time_of is None:
            if any((_owner(found.timeline, n), n) in segments for n in range(number + 1, newest + 1)):
                raise BackupError(
                    f"WAL after {show_time(archived)} is missing in the repository (timeline {owner}, segment"
                    f" {number}), so that {show_time(found.moment)} cannot be reached from backup"
                    f" {found.backup.label}: restore to a time before, or to one after a later backup."
                )
            break
        archived = max(archived, time_of)
        if archived >= found.moment:
            return
    if found.target.kind == "time" and archived < found.moment:
        raise BackupError(
            f"The repository ends at {show_time(archived)}, before {show_time(found.moment)}:"
            " restore to a time before that, or to target=latest."
        )


def _owner(timeline: Timeline, number: int) -> int:
    """Return the timeline whose archived segment of this number is in the past of a timeline."""
    end = {ancestor: position // SEGMENT_BYTES for ancestor, position in timeline.ancestors.items()}
    return next((ancestor for ancestor in sorted(end) if number < end[ancestor]), timeline.number)
