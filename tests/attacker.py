"""The host that attacks the others in the scenario security."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.lab import LABCTL, ROOT, Lab

LAB = Lab("molecule-security")
INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends"
SCANNERS = ROOT / ".venv/scan/bin"


class Attacker:
    """A host of the same network that is not in the inventory."""

    def run(self, *command: str | Path, seconds: float = 100) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine with the attacker's address."""
        words = [LABCTL, "enter", LAB.name, "attacker", "--", *command]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)

    def module(self, name: str, *arguments: str, seconds: float = 100) -> str:
        """Run a Python module of the tests with the attacker's address and return its output."""
        done = self.run(sys.executable, "-m", name, *arguments, seconds=seconds)
        assert done.returncode == 0, done.stderr
        return done.stdout
