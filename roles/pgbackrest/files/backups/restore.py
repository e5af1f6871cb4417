"""Restore the cluster of this host to a target, or a copy beside it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backup import ARCHIVE_SECONDS, check, take_backup, wait_until_archived
from cluster import Cluster, Copy, copy_of, free_bytes, primary
from commands import succeeds
from errors import BackupError
from repository import Repository, local_options
from samples import Samples
from targets import Plan, Target, plan, show_time

# What pgBackRest sets for the recovery; a later one must not find it.
RECOVERY = (
    "restore_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    *(f"recovery_target_{kind}" for kind in ("lsn", "name", "time", "timeline", "xid")),
)
NOT_REACHED = "recovery ended before configured recovery target was reached"
# A copy in which an operator looks.
BESIDE_PORT = 5433


def reachable(settings: Mapping[str, Any], repository: Repository, target: Target) -> Plan:
    """Return the plan to a target, after the server, if it runs, has archived what it has."""
    cluster = primary(settings)
    if cluster.answers and target.kind != "backup":
        # The plan says what the repository lacks, also if a damaged server cannot do either.
        with contextlib.suppress(BackupError):
            # A restore to a time ends before the first commit after it, so that there must be one.
            cluster.query("SELECT pg_current_xact_id()")
            archive_now(settings, cluster)
    return plan(repository, target, time.time())


def archive_now(settings: Mapping[str, Any], cluster: Cluster) -> None:
    """Switch to a new segment and wait until the one before is archived, or its archiving fails."""
    if settings["backup_host"] or settings["database"]:
        wait_until_archived(Repository(settings["stanza"]), cluster)
        return
    before = cluster.query("SELECT failed_count FROM pg_stat_archiver")
    name = cluster.query("SELECT pg_walfile_name(pg_switch_wal())")
    done = f"coalesce(last_archived_wal >= '{name}', false) OR failed_count > {before}"
    cluster.wait_for(f"({done}) FROM pg_stat_archiver", "t", ARCHIVE_SECONDS)


def loss(settings: Mapping[str, Any], found: Plan, now: float) -> dict[str, Any]:
    """Return what a restore undoes: seconds, and the rows written since, None if they are unknown."""
    if found.target.kind == "latest":
        return {"seconds": 0, "rows": 0}
    cluster = primary(settings)
    rows = None
    if cluster.answers:
        rows = Samples(Path(settings["state"])).rows_since(found.moment, cluster)
    return {"seconds": round(now - found.moment), "rows": rows}


def describe(settings: Mapping[str, Any], found: Plan) -> dict[str, Any]:
    """Return a plan for the operator."""
    now = time.time()
    lost = loss(settings, found, now)
    rows = "an unknown number of" if lost["rows"] is None else f"about {lost['rows']}"
    return {
        "backup": found.backup.label,
        "timeline": found.timeline.number,
        "target": f"{found.target.kind} {found.target.value}".strip(),
        "moment": show_time(found.moment),
        "lost_seconds": lost["seconds"],
        "lost_rows": lost["rows"],
        "text": (
            f"From backup {found.backup.label} to {show_time(found.moment)}."
            + (
                f" The last {lost['seconds']} s and {rows} written rows will be gone."
                if lost["seconds"]
                else ""
            )
        ),
    }


def require_space(settings: Mapping[str, Any], found: Plan) -> None:
    """Raise BackupError if the file system of the data has no room for a copy."""
    folder = Path(settings["data"]).parent
    free = free_bytes(folder)
    # The WAL of a recovery comes on top.
    needed = int(found.backup.size * 1.1) + 512 * 1024 * 1024
    if free < needed:
        raise BackupError(
            f"A restore needs {needed >> 20} MiB in {folder}, and {free >> 20} MiB are free:"
            " make room, or remove what an earlier restore kept with `fastmetal-backups forget`."
        )


def require_new_cluster(settings: Mapping[str, Any], repository: Repository) -> None:
    """Raise BackupError if the server's cluster is the one whose backups the repository has."""
    system = primary(settings).query("SELECT system_identifier FROM pg_control_system()")
    if any(str(known["system-id"]) == system for known in repository.info.get("db", ())):
        raise BackupError(
            "The data of this host is what the repository has backups of, and nothing has changed:"
            " replace it with playbooks/restore.yml."
        )


def fetch(repository: Repository, found: Plan, copy: Copy) -> None:
    """Restore the files of the plan's backup into the directory of a copy."""
    copy.remove()
    copy.data.mkdir(mode=0o700, parents=True)
    shutil.chown(copy.data, "postgres", "postgres")
    # Without the path of the copy: the files become the cluster's.
    command = f"--recovery-option=restore_command={repository.fetch_command(found.backup.repository)}"
    try:
        repository.run("restore", *local_options(copy.data), *found.options, command)
    except BackupError as error:
        copy.remove()
        where = f"Backup {found.backup.label} in repository {found.backup.repository}"
        raise BackupError(f"{where} cannot be restored: {error}") from error


def recover(settings: Mapping[str, Any], repository: Repository, copy: Copy, found: Plan) -> None:
    """Replay the WAL in a copy up to the target, where it ends."""
    configuration, binaries = Path(settings["configuration"]), Path(settings["binaries"])
    copy.launch(
        configuration,
        binaries,
        hot_standby="off",
        recovery_target_action="shutdown",
        restore_command=repository.fetch_command(found.backup.repository, copy.data),
    )
    try:
        copy.wait_until_ended()
    except BackupError as error:
        if NOT_REACHED not in str(error):
            raise
        if found.target.kind == "restore_point":
            raise BackupError(f"The repository has no restore point {found.target.value}.") from error
        # No transaction ended after that time, so the end of the WAL is the same state.
        with (copy.data / "postgresql.auto.conf").open("a") as file:
            file.write("recovery_target_time = ''\nrecovery_target_lsn = ''\n")


class Restore:
    """A restore of this host's cluster: beside it first, so that a failure changes nothing."""

    def __init__(self, settings: Mapping[str, Any], repository: Repository) -> None:
        self.settings = settings
        self.repository = repository
        self.cluster = primary(settings)
        self.copy = copy_of(settings, "restored", BESIDE_PORT + 1)

    def run(self, target: Target, *, keep: bool) -> dict[str, Any]:
        """Replace the cluster's data and return what was done; keep: the data that was there before."""
        begun = time.monotonic()
        if self.cluster.data.is_mount():
            raise BackupError(
                f"{self.cluster.data} is a mount point, which a restore cannot rename:"
                f" mount {self.cluster.data.parent} instead."
            )
        latest = target.kind == "latest"
        if latest and self.cluster.running:
            # What it wrote last is archived when it stops.
            self.cluster.stop()
        try:
            found = reachable(self.settings, self.repository, target)
            require_space(self.settings, found)
            fetch(self.repository, found, self.copy)
            if not latest:
                recover(self.settings, self.repository, self.copy, found)
        except BaseException:
            self.copy.remove()
            if latest:
                succeeds("systemctl", "start", self.cluster.unit)
            raise
        stopped = time.monotonic()
        former = self.replace()
        down = time.monotonic() - stopped
        timeline = self.verify()
        if not keep and former:
            shutil.rmtree(former)
        return {
            "backup": found.backup.label,
            "moment": show_time(found.moment),
            "timeline": timeline,
            "kept": str(former) if former and keep else "",
            "down_seconds": round(down, 1),
            "seconds": round(time.monotonic() - begun, 1),
        }

    def replace(self) -> Path | None:
        """Put the copy in place of the cluster's data; put the former data back if it does not start."""
        data = Path(self.settings["data"])
        former = data.with_name(f"{data.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        self.cluster.stop()
        had_data = data.exists()
        if had_data:
            data.rename(former)
        self.copy.data.rename(data)
        try:
            self.cluster.start()
        except BackupError as error:
            succeeds("systemctl", "stop", self.cluster.unit)
            data.rename(self.copy.data)
            if had_data:
                former.rename(data)
                succeeds("systemctl", "start", self.cluster.unit)
            raise BackupError(
                f"The restored data did not start, and the former is back: {error}"
                f" The restored data is in {self.copy.data}."
            ) from error
        for name in RECOVERY:
            self.cluster.query(f"ALTER SYSTEM RESET {name}")
        self.copy.log.unlink(missing_ok=True)
        if self.copy.socket.exists():
            shutil.rmtree(self.copy.socket)
        return former if had_data else None

    def verify(self) -> int:
        """Check that the new timeline is archived, back the cluster up, and return the timeline."""
        try:
            check(self.settings, self.repository)
            # The backup host takes its backups itself: playbooks/restore.yml asks it to.
            if not self.settings["backup_host"]:
                take_backup(self.settings, "diff")
        except BackupError as error:
            raise BackupError(
                f"The data is restored and served, but no new backup could be taken: {error}"
                " Run `fastmetal-backups backup` once that is mended."
            ) from error
        return self.cluster.timeline


class Beside:
    """A restored copy beside the cluster, for looking."""

    def __init__(self, settings: Mapping[str, Any], repository: Repository) -> None:
        self.settings = settings
        self.repository = repository
        self.copy = copy_of(settings, "beside", BESIDE_PORT)

    def run(self, target: Target) -> dict[str, Any]:
        """Start the copy, replacing an earlier one, and return how to reach it."""
        begun = time.monotonic()
        found = reachable(self.settings, self.repository, target)
        require_space(self.settings, found)
        fetch(self.repository, found, self.copy)
        try:
            self.copy.launch(
                Path(self.settings["configuration"]),
                Path(self.settings["binaries"]),
                restore_command=self.repository.fetch_command(found.backup.repository, self.copy.data),
            )
            self.copy.wait_for("pg_is_in_recovery()", "f")
        except BackupError:
            self.copy.remove()
            raise
        return {
            "backup": found.backup.label,
            "moment": show_time(found.moment),
            "connect": f"sudo -u postgres psql -h {self.copy.socket} -p {self.copy.port}",
            "seconds": round(time.monotonic() - begun, 1),
        }


def forget(settings: Mapping[str, Any]) -> list[str]:
    """Remove the copy beside the cluster and the data that restores have kept; return what was removed."""
    removed = []
    beside = copy_of(settings, "beside", BESIDE_PORT)
    if beside.data.exists():
        beside.remove()
        removed.append(str(beside.data))
    for former in kept(settings):
        shutil.rmtree(former)
        removed.append(str(former))
    return removed


def kept(settings: Mapping[str, Any]) -> list[Path]:
    """Return the data directories that restores have kept, oldest first."""
    data = Path(settings["data"])
    return sorted(data.parent.glob(f"{data.name}.before-*"))
