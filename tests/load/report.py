"""The results of a load: one sample per request, and statistics over samples."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

OK = "ok"


class Sample(NamedTuple):
    """One request; `at` and `seconds` count from its due time."""

    at: float  # seconds since the epoch
    kind: str
    fresh: bool
    seconds: float
    outcome: str  # ok, status, body, reset, unreachable or timeout
    status: int
    release: str
    key: str
    note: str


def percentile(values: Iterable[float], share: float) -> float:
    """Return the nearest-rank percentile: at least `share` (0 to 1) of the values do not exceed it."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


class Report:
    """The samples of a load, ordered by due time."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.samples = sorted(samples)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Return the report in a file that the driver wrote."""
        return cls(Sample(*fields) for fields in json.loads(path.read_text())["samples"])

    def write(self, path: Path) -> None:
        """Write the statistics, those of each second, and all samples, as JSON."""
        seconds: dict[int, list[Sample]] = {}
        for sample in self.samples:
            seconds.setdefault(int(sample.at), []).append(sample)
        content = {
            "total": self.figures,
            "seconds": {second: Report(within).figures for second, within in seconds.items()},
            "samples": self.samples,
        }
        path.write_text(json.dumps(content))

    def between(self, start: float, end: float = math.inf, *kinds: str) -> Report:
        """Return the samples that were due in [start, end), of the given kinds or of all."""
        return Report(s for s in self.samples if start <= s.at < end and (not kinds or s.kind in kinds))

    @property
    def figures(self) -> dict[str, Any]:
        """Return counts by outcome and release, and latencies in ms."""
        seconds = [sample.seconds for sample in self.samples]
        return {
            "requests": len(self.samples),
            "outcomes": dict(Counter(sample.outcome for sample in self.samples)),
            "releases": dict(Counter(sample.release for sample in self.samples)),
            "p50_ms": round(percentile(seconds, 0.5) * 1000, 1),
            "p99_ms": round(percentile(seconds, 0.99) * 1000, 1),
            "worst_ms": round(max(seconds, default=math.nan) * 1000, 1),
        }

    @property
    def failures(self) -> list[Sample]:
        """Return the samples that are not OK."""
        return [sample for sample in self.samples if sample.outcome != OK]

    @property
    def outage(self) -> float:
        """Return the seconds from the first failure to the end of the last one."""
        failures = self.failures
        return max(s.at + s.seconds for s in failures) - failures[0].at if failures else 0.0
