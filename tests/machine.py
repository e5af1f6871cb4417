"""What bounds on time and processor time must know of the machine that runs the tests."""

from __future__ import annotations

import subprocess
import time

# What starting Python usually takes: a process, files and memory, as in what is bounded by it.
USUAL_SECONDS = 0.012


def slowness() -> float:
    """Return how many times as long as usual this machine takes for the same work, at least 1."""
    return max(1.0, min(_start() for _ in range(10)) / USUAL_SECONDS)


def _start() -> float:
    begun = time.perf_counter()
    subprocess.run(["/usr/bin/python3", "-I", "-c", "pass"], check=True)
    return time.perf_counter() - begun
