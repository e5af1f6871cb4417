"""What Prometheus and status.yml know of the backups of this host."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import free_bytes, primary
from drill import last_drill
from errors import BackupError
from files import write_atomically
from repository import SEGMENT_BYTES, Repository
from restore import kept
from samples import Samples


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Take a sample and return what is known; every time is in seconds since 1970."""
    repository, cluster = Repository(settings["stanza"]), primary(settings)
    samples, now = Samples(Path(settings["state"])), time.time()
    found: dict[str, Any] = {"time": now, "faults": [], "backups": {}, "spaces": {}, "drill": {}}
    found["kept"] = [str(folder) for folder in kept(settings)]
    if settings["backup_host"]:
        # That host measures the rest.
        with contextlib.suppress(BackupError):
            samples.add(cluster)
        return found
    try:
        found["faults"] = repository.faults
        for backup in repository.backups:
            known = found["backups"].setdefault(str(backup.repository), {})
            known |= {backup.kind: backup.stop, "last": backup.stop, "label": backup.label}
            known["oldest"] = min(known.get("oldest", backup.stop), backup.stop)
            known["size"] = backup.size
        archived = repository.archived
    except BackupError as error:
        found["faults"] = [str(error)]
        archived = None
    # It may stop at any moment, which other alerts report.
    with contextlib.suppress(BackupError):
        sample = samples.add(cluster)
        if archived and archived[0] <= sample["timeline"]:
            # Only whole segments: Postgres ends the current one after archive_timeout if it has changes.
            begun = sample["position"] // SEGMENT_BYTES * SEGMENT_BYTES
            found["behind_bytes"] = max(begun - archived[1], 0)
            until = samples.archived_until(archived[1], now) if found["behind_bytes"] else now
            found["behind_seconds"] = round(now - until, 1)
    paths = [Path(path) for path in settings["repositories"]]
    found["spaces"] = {
        str(number): {"free": free_bytes(path), "size": shutil.disk_usage(path).total}
        for number, path in enumerate(paths, start=1)
    }
    data = Path(settings["data"]).parent.stat().st_dev
    found["same_disk"] = not settings["database"] and all(path.stat().st_dev == data for path in paths)
    found["drill"] = last_drill(settings)
    return found


def record(settings: Mapping[str, Any]) -> None:
    """Write what is known where the exporter and status.yml read it."""
    found = measure(settings)
    write_atomically(Path(settings["state"]) / "status.json", json.dumps(found) + "\n", sync=False)
