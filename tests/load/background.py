"""Run a load in the background."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import ROOT
from tests.load.report import Report


@dataclass
class Load:
    """A running load; its report is complete once the load has ended."""

    begun: float = field(default_factory=time.time)
    report: Report = field(default_factory=lambda: Report([]))


@contextmanager
def loaded(plan: Mapping[str, Any], scratch: Path) -> Iterator[Load]:
    """Run the driver as a process during the block; its plan and result are written to `scratch`."""
    file, result = scratch / f"{plan['run']}.json", scratch / f"{plan['run']}.result.json"
    file.write_text(json.dumps(plan))
    process = subprocess.Popen([sys.executable, "-m", "tests.load.driver", file, result], cwd=ROOT)
    load = Load()
    try:
        yield load
    finally:
        process.terminate()
        process.wait(60)
        load.report = Report.read(result)
