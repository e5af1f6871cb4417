"""How many rows the server had written and how far its WAL was, minute by minute."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster import Cluster
from files import write_atomically

# The file is written each minute, so older samples are kept less densely.
KEPT_SECONDS, DENSE_SECONDS, SPARSE_SECONDS = 14 * 86400, 3600, 600
WRITTEN = "SELECT coalesce(sum(tup_inserted + tup_updated + tup_deleted), 0) FROM pg_stat_database"


class Samples:
    """The samples in a file of this host, oldest first: {time, position, rows, timeline}."""

    def __init__(self, state: Path) -> None:
        self.file = state / "samples.jsonl"

    def read(self) -> list[dict[str, Any]]:
        """Return the samples."""
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text().splitlines() if line.endswith("}")]

    def add(self, cluster: Cluster) -> dict[str, Any]:
        """Take a sample of a running server."""
        sample = {
            "time": time.time(),
            "position": cluster.position,
            "rows": int(cluster.query(WRITTEN)),
            "timeline": cluster.timeline,
        }
        lines = thinned([*self.read(), sample], sample["time"])
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in lines), sync=False)
        return sample

    def rows_since(self, moment: float, cluster: Cluster) -> int | None:
        """Return about how many rows were written since a moment; None if no sample is as old."""
        before = [sample for sample in self.read() if sample["time"] <= moment]
        if not before:
            return None
        written = int(cluster.query(WRITTEN)) - before[-1]["rows"]
        # A crash has reset the counters.
        return written if written >= 0 else None

    def archived_until(self, position: int, now: float) -> float:
        """Return until when the WAL up to a position was written: the latest sample at or before it."""
        done = [sample["time"] for sample in self.read() if sample["position"] <= position]
        return done[-1] if done else now


def thinned(samples: Iterable[dict[str, Any]], now: float) -> list[dict[str, Any]]:
    """Return the samples of the last hour, and before that the first one of each ten minutes."""
    kept: dict[float, dict[str, Any]] = {}
    for sample in samples:
        age = now - sample["time"]
        if age <= KEPT_SECONDS:
            dense = age <= DENSE_SECONDS
            kept.setdefault(sample["time"] if dense else sample["time"] // SPARSE_SECONDS, sample)
    return list(kept.values())
