"""What bounds on time and processor time must know of the machine that runs the tests."""

from __future__ import annotations

import time

# What the loop takes on a core of the kind whose figures the documents give.
USUAL_SECONDS = 0.3


def slowness() -> float:
    """Return how many times as long as usual this machine's core takes for the same work, at least 1."""
    return max(1.0, min(_loop() for _ in range(3)) / USUAL_SECONDS)


def _loop() -> float:
    begun, total = time.perf_counter(), 0
    for number in range(5_000_000):
        total += number
    return time.perf_counter() - begun
