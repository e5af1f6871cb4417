"""Mark on a host which functions are managed here, and keep copies of what they replace.

A function is a role that provides one. Its mark is /etc/fastmetal/functions/ROLE.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible_collections.fastmetal.metal.plugins.module_utils.files import write_atomically

# environment, and services: the names that the function had on this host.
Mark = dict[str, Any]

ROOT = Path("/")
# Below the root of a host, or of a test.
MARKS = "etc/fastmetal/functions"
REPLACED = "etc/fastmetal/replaced"
# Version 0.1.0 wrote no marks. Only its roles write these files: {role: (pattern, text in the file)}.
SIGNS = {
    "alertmanager": ("etc/fastmetal/alertmanager/alertmanager.yml", ""),
    "app": ("usr/local/lib/*-release/__main__.py", "SERVICE-release"),
    "base": ("etc/apt/apt.conf.d/90fastmetal", ""),
    "exporter": ("etc/systemd/system/fastmetal-host-metrics.service", ""),
    "grafana": ("etc/fastmetal/grafana/grafana.ini", ""),
    "logs": ("etc/systemd/journal-*.conf.d/fastmetal.conf", ""),
    "nginx": ("etc/systemd/system/nginx.service.d/fastmetal.conf", ""),
    "postgresql": ("etc/postgresql/*/main/conf.d/fastmetal.conf", ""),
    "prometheus": ("etc/systemd/system/prometheus.service.d/fastmetal.conf", ""),
    "redis": ("etc/redis/redis-cache.conf", "unixsocket /run/redis-cache/redis-server.sock"),
}


def read_marks(root: Path = ROOT) -> dict[str, Mark]:
    """Return the marks by role; without any, those that the files of version 0.1.0 stand for."""
    if (root / MARKS).is_dir():
        paths = sorted((root / MARKS).glob("*.json"))
        return {path.stem: with_services(json.loads(path.read_text())) for path in paths}
    marks: dict[str, Mark] = {}
    for role, (pattern, text) in SIGNS.items():
        found = [path for path in root.glob(pattern) if text in path.read_text(errors="replace")]
        if found:
            names = [path.parent.name.removesuffix("-release") for path in found]
            marks[role] = {"services": names} if role == "app" else {}
    return marks


def with_services(mark: Mark) -> Mark:
    """Return a mark with the list of services, which earlier versions wrote as one name."""
    name = mark.pop("service", None)
    return mark | ({"services": [name]} if name else {})


def joined(known: Mark, mark: Mark) -> Mark:
    """Return a mark with the services of an earlier one."""
    return mark | {"services": sorted({*known.get("services", ()), *mark.get("services", ())})}


def is_marked(role: str, mark: Mark, root: Path = ROOT) -> bool:
    """Return whether a role's mark is as given, or has other services as well."""
    known = read_marks(root).get(role)
    return (root / MARKS).is_dir() and known is not None and known == joined(known, mark)


def claim(role: str, mark: Mark, files: Iterable[str], root: Path = ROOT) -> None:
    """Mark a role's function; the first time, copy the files that it replaces before."""
    known, marks = read_marks(root), root / MARKS
    mark = joined(known.get(role, {}), mark)
    if role not in known:
        for path in files:
            keep_copy(Path(path), root)
    if marks.is_dir():
        write_atomically(marks / f"{role}.json", json.dumps(mark) + "\n")
        return
    # In one step: with the first mark, the files of version 0.1.0 no longer count.
    candidate = marks.with_suffix(".new")
    shutil.rmtree(candidate, ignore_errors=True)
    candidate.mkdir(parents=True)
    for name in {*known, role}:
        write_atomically(candidate / f"{name}.json", json.dumps(joined(known.get(name, {}), mark)) + "\n")
    candidate.rename(marks)


def keep_copy(path: Path, root: Path = ROOT) -> None:
    """Copy a file below REPLACED, with owner and mode; an earlier copy stays."""
    copy = root / REPLACED / path.relative_to("/")
    if not path.is_file() or copy.exists():
        return
    (root / REPLACED).mkdir(parents=True, exist_ok=True)
    (root / REPLACED).chmod(0o700)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, copy)
    shutil.chown(copy, path.stat().st_uid, path.stat().st_gid)
