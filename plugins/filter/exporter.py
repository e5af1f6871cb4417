"""Filters of the role exporter."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


def exporter_files(kinds: Iterable[str], names: Collection[str]) -> list[dict[str, Any]]:
    """Return the drop-ins of all kinds of exporters for file_set; only those in `names` are present."""
    entries = []
    for kind in sorted(kinds):
        unit = f"prometheus-{kind}-exporter.service"
        path = f"/etc/systemd/system/{unit}.d/fastmetal.conf"
        entry = {"path": path, "template": "exporter.conf.j2", "variables": {"name": kind}}
        entries.append(entry | {"present": kind in names, "units": [unit]})
    return entries


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {"exporter_files": exporter_files}
