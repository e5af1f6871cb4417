"""Prove that the backups restore: a throw-away copy at a random second, compared and checked."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import Copy, copy_of
from dump import dump_all
from errors import BackupError
from files import write_atomically
from manifest import differences
from repository import Repository, format_lsn
from restore import NOT_REACHED, fetch, reachable, require_space
from targets import Plan, Target, parse_target, plan

PORT = 5435
KEPT_DAYS = 364
# Reads every index entry and, for tables, looks each row up in its indexes.
AMCHECK = """
CREATE EXTENSION IF NOT EXISTS amcheck;
SELECT count(*) FROM pg_index i
JOIN pg_class c ON c.oid = indexrelid
JOIN pg_am a ON a.oid = relam
CROSS JOIN LATERAL (SELECT bt_index_check(c.oid, true)) checked
WHERE amname = 'btree' AND indisready AND indisvalid AND relpersistence <> 't'
"""


class Drill:
    """One drill."""

    def __init__(self, settings: Mapping[str, Any], repository: Repository) -> None:
        self.settings = settings
        self.repository = repository
        self.copy: Copy = copy_of(settings, "drill", PORT)
        self.evidence: dict[str, Any] = {"environment": settings["environment"], "result": "failed"}

    def run(self, moment: float | None = None) -> dict[str, Any]:
        """Restore to a random second, or a given one, check the copy, remove it, and return the evidence."""
        begun = time.time()
        self.evidence["begun"] = begun
        try:
            self._run(moment)
            self.evidence["result"] = "ok"
        except BackupError as error:
            self.evidence["reason"] = str(error)
        finally:
            self.copy.remove()
        self.evidence["seconds"] = round(time.time() - begun, 1)
        return self.evidence

    def _run(self, moment: float | None) -> None:
        # Archives what the server has, so that the newest moments are part of the drill.
        reachable(self.settings, self.repository, Target("latest", ""))
        backups = [backup for backup in self.repository.backups if backup.manifest.get("position")]
        if not backups:
            raise BackupError("no backup has a manifest")
        earliest = min(float(backup.manifest["time"]) for backup in backups)
        chosen = moment or self._choose(earliest)
        target = parse_target(f"time={time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(chosen))}")
        found = plan(self.repository, target, time.time())
        self.evidence |= {
            "moment": found.moment,
            "backup": found.backup.label,
            "repository": found.backup.repository,
            "distance_seconds": round(time.time() - found.moment),
        }
        require_space(self.settings, found)
        self._compare(found)
        self._advance(found)
        self._check()
        self._ask()
        if self.settings["dumps"]:
            self.evidence["dumps"] = dump_all(self.settings, self.copy)

    def _choose(self, earliest: float) -> float:
        """Return a random moment that was archived."""
        repository = self.repository
        chosen = random.uniform(earliest, repository.archived_at(repository.timelines[-1]))  # noqa: S311
        # What a lost server had not archived is no promise.
        return min(chosen, repository.archived_at(repository.live_at(chosen)))

    def _compare(self, found: Plan) -> None:
        """Restore the backup, stop at the position of its manifest, and compare every table."""
        manifest = found.backup.manifest
        begun = time.monotonic()
        # Its own timeline: a moment on a later one may branch off before the manifest's position.
        timeline = next(one for one in self.repository.timelines if one.number == found.backup.timeline)
        position = Target("lsn", format_lsn(int(manifest["position"])))
        fetch(self.repository, Plan(position, found.backup, timeline, found.moment), self.copy)
        self.evidence["restore_seconds"] = round(time.monotonic() - begun, 1)
        self._launch(found, hot_standby="on", recovery_target_action="pause")
        self.copy.wait_for("pg_get_wal_replay_pause_state()", "paused")
        wrong = differences(manifest, self.copy)
        self.evidence["tables"] = sum(len(tables) for tables in manifest["tables"].values())
        self.evidence["rows"] = sum(e[0] for tables in manifest["tables"].values() for e in tables.values())
        if wrong:
            more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise BackupError(f"the restored tables differ from the manifest: {'; '.join(wrong[:5])}{more}")
        self.copy.stop()

    def _advance(self, found: Plan) -> None:
        """Replay the WAL from there to the moment and make the copy writable."""
        if found.moment < float(found.backup.manifest["time"]):
            # The manifest is past the moment: begin again.
            fetch(self.repository, found, self.copy)
        begun = time.monotonic()
        timeline = f"0x{found.timeline.number:X}"
        options = {"recovery_target_lsn": "", "recovery_target_timeline": timeline}
        try:
            self._launch(
                found, **options, recovery_target_time=found.target.value, recovery_target_action="promote"
            )
            self.copy.wait_for("pg_is_in_recovery()", "f")
        except BackupError as error:
            if NOT_REACHED not in str(error) + self.copy.reason():
                raise
            # No transaction ended after that moment.
            self._launch(found, **options, recovery_target_time="")
            self.copy.wait_for("pg_is_in_recovery()", "f")
        self.evidence["replay_seconds"] = round(time.monotonic() - begun, 1)

    def _check(self) -> None:
        """Check every index against its table."""
        begun = time.monotonic()
        indexes = 0
        for database in self.copy.databases():
            try:
                indexes += int(self.copy.query(AMCHECK, database))
            except BackupError as error:
                raise BackupError(f"an index of {database} is damaged: {error}") from error
        self.evidence["indexes"] = indexes
        self.evidence["check_seconds"] = round(time.monotonic() - begun, 1)

    def _ask(self) -> None:
        """Run the operator's queries, each of which must return true."""
        asked = 0
        for database, queries in self.settings["queries"].items():
            for query in queries:
                asked += 1
                if (said := self.copy.query(query, database)) != "t":
                    raise BackupError(
                        f'in {database}, "{query}" returned {said[:100] or "nothing"}, not true'
                    )
        self.evidence["queries"] = asked

    def _launch(self, found: Plan, **options: str) -> None:
        options["restore_command"] = self.repository.fetch_command(found.backup.repository, self.copy.data)
        self.copy.launch(Path(self.settings["configuration"]), Path(self.settings["binaries"]), **options)


def run_drill(settings: Mapping[str, Any], moment: float | None = None) -> dict[str, Any]:
    """Run a drill, keep its evidence for a year, and return it."""
    evidence = Drill(settings, Repository(settings["stanza"])).run(moment)
    folder = Path(settings["state"]) / "drills"
    folder.mkdir(exist_ok=True)
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(evidence["begun"]))
    write_atomically(folder / f"{name}.json", json.dumps(evidence, indent=2) + "\n")
    for file in folder.glob("*.json"):
        if file.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
            file.unlink()
    return evidence


def last_drill(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evidence of the newest drill; empty if there was none."""
    files = sorted((Path(settings["state"]) / "drills").glob("*.json"))
    found: dict[str, Any] = json.loads(files[-1].read_text()) if files else {}
    return found
