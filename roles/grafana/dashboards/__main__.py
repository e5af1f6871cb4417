#!/usr/bin/env python3
"""Write the JSON of the dashboards; with --check, exit with 1 if a file is out of date and write nothing."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import boards

TARGET = Path(__file__).resolve().parents[1] / "files/dashboards"
MODULES = [importlib.import_module(f"boards.{found.name}") for found in pkgutil.iter_modules(boards.__path__)]


def main() -> int:
    """Write all dashboards, or compare them with the files."""
    wanted = {TARGET / f"{module.BOARD.uid}.json": module.BOARD.render() for module in MODULES}
    found = {path: path.read_text() for path in TARGET.glob("*.json")}
    if sys.argv[1:] == ["--check"]:
        return int(found != wanted)
    for path in found.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
