#!/usr/bin/python3
"""What an operator wants to know about one host, in one look and without changing anything."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import shutil
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_status
short_description: Tell which release, schema, certificates, space and units a host has
description:
  - What a host does not have, because it serves another function, is null or empty.
author: Fastmetal
options:
  service: {type: str, required: true, description: "The service's name."}
  units: {type: list, elements: str, required: true, description: "Patterns of units to be active."}
  database: {type: str, default: "", description: "The database here whose schema revision is asked for."}
  edge: {type: bool, default: false, description: "Whether the public site is served here."}
  certificates: {type: list, elements: path, default: [], description: "The files of those in use."}
"""

RETURN = r"""
status: {type: dict, returned: always, description: "What was found."}
"""

EXAMPLES = r"""
- name: Look at the host
  host_status:
    service: api
    units: [nginx.service, "postgresql@*.service"]
"""

DAY = 86400
MAINTENANCE = Path("/etc/nginx/maintenance/on")


class Look:
    """One look at the host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.service: str = module.params["service"]
        self.home = Path("/srv") / self.service

    def output(self, *command: str, text: str | None = None) -> str:
        """A command's output, empty where it failed: a look goes on when a part of the host does not."""
        return str(self.module.run_command(list(command), data=text)[1])

    def live(self) -> Path | None:
        """The pointer to what serves: to the instance on trial while a release is under way."""
        pointers = (Path("/run") / self.service / "trial", self.home / "current")
        return next((pointer for pointer in pointers if pointer.is_symlink()), None)

    def release(self) -> dict[str, Any] | None:
        """The live release, and since when it has been."""
        live = self.live()
        if live is None:
            return None
        name = read_json(live / "release.json").get("id", live.readlink().name)
        entries = [entry for entry in self.history() if entry.get("release") == name and entry.get("commit")]
        return {
            "id": name,
            "commit": entries[-1]["commit"] if entries else None,
            "since": live.lstat().st_mtime,
            "on_trial": live.name == "trial",
        }

    def workers(self) -> int | None:
        """How many worker processes the live instance has: all of its processes but Gunicorn's own."""
        live = self.live()
        if live is None:
            return None
        unit = f"{self.service}@{live.readlink().name}.service"
        group = self.output("systemctl", "show", "--value", "--property=ControlGroup", unit).strip()
        try:
            processes = Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split() if group else []
        except OSError:
            return 0
        return max(len(processes) - 1, 0)

    def history(self) -> list[dict[str, Any]]:
        """What was released, oldest first; a line that a power cut left half written is none."""
        file = self.home / "history.jsonl"
        entries = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return entries

    def configuration(self) -> str | None:
        """A digest of the service's settings and credentials that equals that of a host configured alike."""
        files = sorted(path for path in Path("/etc", self.service).rglob("*") if path.is_file())
        digest = hashlib.sha256()
        for path in files:
            # Their number follows the host's processors.
            lines = [line for line in path.read_bytes().splitlines() if not line.startswith(b"workers = ")]
            digest.update(b"\n".join([bytes(path), *lines]))
        return digest.hexdigest()[:12] if files else None

    def revision(self) -> str | None:
        """The revision of the database's schema."""
        if not self.module.params["database"]:
            return None
        psql = ["psql", "--no-psqlrc", "-Atd", self.module.params["database"], "-c"]
        query = "SELECT version_num FROM alembic_version"
        return self.output("runuser", "-u", "postgres", "--", *psql, query).strip() or None

    def certificates(self) -> dict[str, int]:
        """Days that are left to the certificates on disk, and to the one that the site really serves."""
        files = map(Path, self.module.params["certificates"])
        texts = {path.stem: path.read_text() for path in files if path.exists()}
        if self.module.params["edge"]:
            try:
                texts["served"] = ssl.get_server_certificate(("127.0.0.1", 443), timeout=3)
            except OSError:
                texts["served"] = ""
        days = {}
        for name, text in texts.items():
            ends = self.output("openssl", "x509", "-noout", "-enddate", text=text).strip().partition("=")[2]
            days[name] = int((ssl.cert_time_to_seconds(ends) - time.time()) // DAY) if ends else 0
        return days

    def units(self) -> dict[str, str]:
        """The states of the expected units, and of all that failed."""
        listed = json.loads(
            self.output("systemctl", "list-units", "--all", "--no-pager", "--output=json") or "[]"
        )
        found = {unit["unit"]: unit for unit in listed if unit["load"] == "loaded"}
        states: dict[str, str] = {}
        for pattern in self.module.params["units"]:
            names = fnmatch.filter(found, pattern)
            states |= {name: shown(found[name]) for name in names} or {pattern: "missing"}
        return states | {
            name: shown(unit)
            for name, unit in found.items()
            if unit["active"] == "failed" or unit["sub"] == "auto-restart"
        }

    def maintenance(self) -> dict[str, Any] | None:
        """Since when clients are kept out, and what they are told."""
        if not MAINTENANCE.exists():
            return None
        return {"since": MAINTENANCE.stat().st_mtime, "message": MAINTENANCE.read_text().strip()}


def shown(unit: dict[str, str]) -> str:
    """A unit's state: active, or what it is instead."""
    return "active" if unit["active"] == "active" else f"{unit['active']} ({unit['sub']})"


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def disks() -> dict[str, int]:
    """Percent used of each file system that fills."""
    used = {}
    devices: set[int] = set()
    for path in ("/", "/var", "/srv", "/tmp"):  # noqa: S108 - it is looked at, not used
        device = os.stat(path).st_dev  # noqa: PTH116 - of the mount, links followed
        if device not in devices:
            usage = shutil.disk_usage(path)
            used[path] = round(100 * usage.used / (usage.used + usage.free))
        devices.add(device)
    return used


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "service": {"type": "str", "required": True},
            "units": {"type": "list", "elements": "str", "required": True},
            "database": {"type": "str", "default": ""},
            "edge": {"type": "bool", "default": False},
            "certificates": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    look = Look(module)
    try:
        status = {
            "name": socket.gethostname(),
            "release": look.release(),
            "workers": look.workers(),
            "last_deploy": next(reversed(look.history()), None),
            "lock": read_json(Path("/run", module.params["service"], "deploy.lock")) or None,
            "configuration": look.configuration(),
            "revision": look.revision(),
            "certificates": look.certificates(),
            "disks": disks(),
            "units": look.units(),
            "maintenance": look.maintenance(),
        }
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"The host's state could not be read: {error}.")
    module.exit_json(changed=False, status=status)


if __name__ == "__main__":
    main()
