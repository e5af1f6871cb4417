"""Read a service's history. Standard library only: programs outside Ansible get a copy of this file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any


def read_history(file: Path) -> list[dict[str, Any]]:
    """Return the entries of a history.jsonl, oldest first; without the file there are none."""
    entries = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        # A power cut or a full disk may leave half a line.
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries
