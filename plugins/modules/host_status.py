#!/usr/bin/python3
"""Read a host's release, schema, certificates, disks, units, alerts and leftovers for status.yml."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fastmetal.metal.plugins.module_utils.history import read_history
from ansible_collections.fastmetal.metal.plugins.module_utils.marks import read_marks
from ansible_collections.fastmetal.metal.plugins.module_utils.ownership import UNITS

DOCUMENTATION = r"""
module: host_status
short_description: Read the release, schema, certificates, disks, units, alerts and leftovers of a host
description:
  - Changes nothing. Fields of functions that the host does not serve are null or empty.
author: Fastmetal
options:
  service: {type: str, required: true, description: "The service's name."}
  units: {type: list, elements: str, required: true, description: "Patterns of units that must be active."}
  database: {type: str, default: "", description: "The local database whose schema revision is read."}
  edge: {type: bool, default: false, description: "Whether the host serves the public site."}
  certificates: {type: list, elements: path, default: [], description: "The certificate files in use."}
  roles: {type: list, elements: str, default: [], description: "The roles of the host."}
  alertmanager: {type: str, default: "", description: "Address and port of the local Alertmanager."}
"""

RETURN = r"""
status: {type: dict, returned: always, description: "The state of the host."}
"""

EXAMPLES = r"""
- name: Read the host's state
  fastmetal.metal.host_status:
    service: api
    units: [nginx.service, "postgresql@*.service"]
"""

DAY = 86400
# Proves that alerts arrive; it always fires.
WATCHDOG = "Watchdog"
# The command of each service that was ever built on the host.
SERVICES = Path("/usr/local/lib")
MAINTENANCE = Path("/etc/nginx/maintenance/on")


class HostState:
    """The state of one host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.service: str = module.params["service"]
        self.home = Path("/srv") / self.service
        self.run = Path("/run") / self.service
        self.etc = Path("/etc") / self.service

    def output(self, *command: str, text: str | None = None) -> str:
        """Return a command's output, empty if it failed: the report must not end at one broken part."""
        return str(self.module.run_command(list(command), data=text)[1])

    def live(self) -> Path | None:
        """Return the symlink to the live instance: the canary during a release, else the promoted one."""
        pointers = (self.run / "canary", self.home / "current")
        return next((pointer for pointer in pointers if pointer.is_symlink()), None)

    def release(self) -> dict[str, Any] | None:
        """Return the live release's id, commit, start (seconds since 1970) and whether it is a canary."""
        live = self.live()
        if live is None:
            return None
        name = read_json(live / "release.json").get("id", live.readlink().name)
        entries = [entry for entry in self.history() if entry.get("release") == name and entry.get("commit")]
        return {
            "id": name,
            "commit": entries[-1]["commit"] if entries else None,
            "since": live.lstat().st_mtime,
            "canary": live.name == "canary",
        }

    def workers(self) -> int | None:
        """Return the number of the live instance's worker processes: all but Gunicorn's master."""
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
        """Return the service's releases on this host, oldest first."""
        return read_history(self.home / "history.jsonl")

    def configuration(self) -> str | None:
        """Return a digest of the service's settings and credentials, to compare hosts."""
        files = sorted(path for path in self.etc.rglob("*") if path.is_file())
        digest = hashlib.sha256()
        for path in files:
            # The number of workers follows the host's processors.
            lines = [line for line in path.read_bytes().splitlines() if not line.startswith(b"workers = ")]
            digest.update(b"\n".join([bytes(path), *lines]))
        return digest.hexdigest()[:12] if files else None

    def configured(self) -> float | None:
        """Return when the service's configuration was last written, in seconds since 1970."""
        times = [path.lstat().st_mtime for path in self.etc.rglob("*")]
        return max(times, default=None)

    def revision(self) -> str | None:
        """Return the revision of the database's schema."""
        if not self.module.params["database"]:
            return None
        psql = ["psql", "--no-psqlrc", "-Atd", self.module.params["database"], "-c"]
        query = "SELECT version_num FROM alembic_version"
        return self.output("runuser", "-u", "postgres", "--", *psql, query).strip() or None

    def certificates(self) -> dict[str, int]:
        """Return the days until each certificate expires; `served` is the one that the site answers with."""
        files = map(Path, self.module.params["certificates"])
        texts = {path.stem: path.read_text() for path in files if path.exists()}
        if self.module.params["edge"]:
            try:
                texts["served"] = ssl.get_server_certificate(("127.0.0.1", 443), timeout=3)
            except OSError:
                texts["served"] = ""
        days = {}
        for name, text in texts.items():
            end = self.output("openssl", "x509", "-noout", "-enddate", text=text).strip().partition("=")[2]
            days[name] = int((ssl.cert_time_to_seconds(end) - time.time()) // DAY) if end else 0
        return days

    def listed_units(self) -> list[dict[str, str]]:
        """Return the units that systemd has loaded."""
        command = ("systemctl", "list-units", "--all", "--no-pager", "--output=json")
        units: list[dict[str, str]] = json.loads(self.output(*command) or "[]")
        return units

    def alerts(self) -> list[dict[str, str]] | None:
        """Return the alerts that fire, without silenced and inhibited ones; None if there is no answer."""
        address = self.module.params["alertmanager"]
        if not address:
            return []
        query = "active=true&silenced=false&inhibited=false"
        # A proxy of the host's environment is not for its own services.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{address}/api/v2/alerts?{query}", timeout=5) as answer:
                return firing(json.load(answer))
        except (OSError, ValueError):
            return None

    def maintenance(self) -> dict[str, Any] | None:
        """Return the start and the message of the maintenance mode, if it is on."""
        if not MAINTENANCE.exists():
            return None
        return {"since": MAINTENANCE.stat().st_mtime, "message": MAINTENANCE.read_text().strip()}


def firing(alerts: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the name, instance, start and summary of Alertmanager's alerts, but not of the watchdog."""
    return [
        {
            "name": alert["labels"]["alertname"],
            "instance": alert["labels"].get("instance", ""),
            "since": alert["startsAt"],
            "summary": alert["annotations"].get("summary", ""),
        }
        for alert in alerts
        if alert["labels"]["alertname"] != WATCHDOG
    ]


def leftovers(
    listed: list[dict[str, str]],
    marks: Iterable[str],
    roles: Iterable[str],
    service: str,
    services: Iterable[str],
) -> dict[str, list[str]]:
    """Return the active units of marked roles that the host no longer has, and of services of other names."""
    active = [unit["unit"] for unit in listed if unit["load"] == "loaded" and unit["active"] == "active"]

    def matching(role: str, name: str) -> list[str]:
        return [
            unit for pattern in UNITS.get(role, ()) for unit in fnmatch.filter(active, pattern.format(name))
        ]

    found = {role: matching(role, service) for role in sorted(set(marks) - set(roles))}
    others = {name: matching("app", name) for name in sorted(set(services) - {service})}
    return found | {f"app {name}": units for name, units in others.items() if units}


def unit_states(listed: list[dict[str, str]], patterns: list[str]) -> dict[str, str]:
    """Return the states of the units that match a pattern and of all failed units.

    listed is the output of `systemctl list-units --output=json`. A pattern without a unit is "missing".
    """
    loaded = {unit["unit"]: unit for unit in listed if unit["load"] == "loaded"}
    states: dict[str, str] = {}
    for pattern in patterns:
        names = fnmatch.filter(loaded, pattern)
        states |= {name: unit_state(loaded[name]) for name in names} or {pattern: "missing"}
    return states | {
        name: unit_state(unit)
        for name, unit in loaded.items()
        if unit["active"] == "failed" or unit["sub"] == "auto-restart"
    }


def unit_state(unit: dict[str, str]) -> str:
    """Return a unit's state, with its substate unless it is active."""
    return "active" if unit["active"] == "active" else f"{unit['active']} ({unit['sub']})"


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, empty without the file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def disks() -> dict[str, int]:
    """Return the used percent of each file system that holds data."""
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
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "service": {"type": "str", "required": True},
            "units": {"type": "list", "elements": "str", "required": True},
            "database": {"type": "str", "default": ""},
            "edge": {"type": "bool", "default": False},
            "certificates": {"type": "list", "elements": "path", "default": []},
            "roles": {"type": "list", "elements": "str", "default": []},
            "alertmanager": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    state = HostState(module)
    try:
        listed = state.listed_units()
        services = [path.parent.name for path in SERVICES.glob("*-release/__main__.py")]
        status = {
            "name": socket.gethostname(),
            "release": state.release(),
            "workers": state.workers(),
            "last_deploy": next(reversed(state.history()), None),
            "lock": read_json(state.run / "deploy.lock") or None,
            "configuration": state.configuration(),
            "revision": state.revision(),
            "certificates": state.certificates(),
            "disks": disks(),
            "units": unit_states(listed, module.params["units"]),
            "configured": state.configured(),
            "alerts": state.alerts(),
            "leftovers": leftovers(
                listed,
                read_marks(),
                module.params["roles"],
                state.service,
                [name.removesuffix("-release") for name in services],
            ),
            "maintenance": state.maintenance(),
        }
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"The host's state could not be read: {error}.")
    module.exit_json(changed=False, status=status)


if __name__ == "__main__":
    main()
