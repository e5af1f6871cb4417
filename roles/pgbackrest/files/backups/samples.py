"""How many rows the server had written and how far its WAL was, minute by minute."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from cluster import Cluster
from files import write_atomically

# Two weeks of minutes.
KEPT = 14 * 24 * 60
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
        lines = [*self.read(), sample][-KEPT:]
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
