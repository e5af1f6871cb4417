"""Take a backup and give it a manifest; set restore points."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from cluster import Cluster, primary
from errors import BackupError
from manifest import make_manifest
from repository import ANNOTATION, SEGMENT_BYTES, Repository, format_lsn
from targets import point_name

ARCHIVE_SECONDS = 60


def take_backup(settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Back the cluster up into each repository and return the newest backup; kind: full, diff or incr."""
    begun = time.monotonic()
    manifest: dict[str, Any] = {}
    for number in numbers(settings):
        repository = Repository(settings["stanza"])
        repository.run(f"--repo={number}", f"--type={kind}", "backup")
        if settings["database"]:
            # pgBackRest knows only archives that the server itself writes to.
            wait_until_archived(repository, primary(settings))
        newest = [backup for backup in repository.backups if backup.repository == number][-1]
        # It describes a moment after the backup, which a restore of it can reach.
        manifest = make_manifest(primary(settings), int(settings["checksum_mb"]) << 20)
        note = f"--annotation={ANNOTATION}={json.dumps(manifest, separators=(',', ':'))}"
        repository.run(f"--repo={number}", f"--set={newest.label}", note, "annotate")
    return {
        "label": newest.label,
        "kind": newest.kind,
        "size_mb": newest.size >> 20,
        "seconds": round(time.monotonic() - begun, 1),
        "manifest": manifest.get("reason") or f"{len(manifest['tables'])} tables",
    }


def numbers(settings: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the repositories."""
    return list(range(1, len(settings["repositories"]) + 1))


def create(settings: Mapping[str, Any]) -> bool:
    """Make the repositories ready for this cluster and take the first backup; return whether it had none."""
    repository = Repository(settings["stanza"])
    cluster = primary(settings)
    system = cluster.query("SELECT system_identifier FROM pg_control_system()")
    known = repository.info.get("db", ())
    if known and str(known[-1]["system-id"]) != system:
        raise BackupError(
            f"The repository has backups of another cluster than this host's (stanza {repository.stanza})."
            " Restore them with playbooks/restore.yml -e target=latest. To begin anew and keep them until"
            " they expire, run `fastmetal-backups adopt`."
        )
    ready = {entry["repo-key"] for entry in (item["database"] for item in repository.info.get("archive", ()))}
    with_backup = {backup.repository for backup in repository.backups}
    if set(numbers(settings)) <= with_backup & ready:
        return False
    repository.run("stanza-create")
    check(settings, repository)
    take_backup(settings, "full")
    return True


def check(settings: Mapping[str, Any], repository: Repository) -> None:
    """Raise BackupError unless WAL that the server writes now reaches the repositories."""
    if settings["database"] or settings["backup_host"]:
        wait_until_archived(repository, primary(settings))
    else:
        repository.run("check")


def wait_until_archived(repository: Repository, cluster: Cluster) -> None:
    """Switch to a new segment and wait until the backup host has archived the one before."""
    end = int(cluster.query("SELECT pg_switch_wal() - '0/0'::pg_lsn").partition(".")[0])
    wanted = (cluster.timeline, -(-end // SEGMENT_BYTES) * SEGMENT_BYTES)
    deadline = time.monotonic() + ARCHIVE_SECONDS
    while (Repository(repository.stanza).archived or (0, 0)) < wanted:
        if time.monotonic() > deadline:
            raise BackupError(
                f"The backup host has not archived the WAL of timeline {wanted[0]} up to"
                f" {format_lsn(wanted[1])} within {ARCHIVE_SECONDS} s:"
                " look at `journalctl -u fastmetal-receive-wal` there."
            )
        time.sleep(0.5)


def adopt(settings: Mapping[str, Any]) -> None:
    """Let the repositories take another cluster than before, and take its first backup."""
    repository = Repository(settings["stanza"])
    repository.run("stanza-upgrade")
    check(settings, repository)
    take_backup(settings, "full")


def set_point(settings: Mapping[str, Any], label: str) -> str:
    """Set a restore point and return its name."""
    name = point_name(label, time.time())
    primary(settings).query(f"SELECT pg_create_restore_point('{name}')")
    return name
