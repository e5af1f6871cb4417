"""Filters for the lists of files that roles hand to file_set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any


def file_entries(
    sources: Iterable[str], directory: str, template: str = "", **options: Any
) -> list[dict[str, Any]]:
    """Return entries that put files of the control node into a directory, under their own names.

    With a template, each file is its rendering with the variable `source`, the path on the control node.
    """
    return [
        {
            "path": f"{directory}/{PurePath(source).name}",
            **({"template": template, "variables": {"source": source}} if template else {"file": source}),
            **options,
        }
        for source in sources
    ]


def file_units(files: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for unit_set the units that read the files at their start, each with its files.

    A unit is enabled if the first file that names it is present.
    """
    units: dict[str, dict[str, Any]] = {}
    for file in files:
        for name in file.get("units", []):
            unit = units.setdefault(name, {"name": name, "enabled": file.get("present", True), "files": []})
            unit["files"].append(file["path"])
    return list(units.values())


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {"file_entries": file_entries, "file_units": file_units}
