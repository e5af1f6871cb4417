#!/usr/bin/python3
"""Read a host's services, certificates, disks, units, alerts and leftovers for status.yml."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
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
short_description: Read the services, certificates, disks, units, alerts and leftovers of a host
description:
  - Changes nothing. Fields of functions that the host does not serve are null or empty.
author: Fastmetal
options:
  services:
    description: The services that have their instances or their database on the host.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {type: str, required: true, description: "The service's name, which is also its database's."}
      runs: {type: bool, required: true, description: "Whether its instances are on the host."}
      database: {type: bool, required: true, description: "Whether its database is on the host."}
      units: {type: list, elements: str, required: true, description: "Like O(units), of the service."}
  units: {type: list, elements: str, required: true, description: "Patterns of units that must be active."}
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
    services: [{name: api, runs: true, database: true}]
    units: [nginx.service, "postgresql@*.service"]
"""

DAY = 86400
# Certificates are renewed with a third of their lifetime left, and some last for years.
EXPIRING_SHARE, EXPIRING_SECONDS = 0.2, 14 * DAY
# What the role acme knows about its certificates.
ACME = Path("/var/lib/fastmetal-acme/state.json")
# What the role pgbackrest knows about the backups.
BACKUPS = Path("/var/lib/fastmetal-backups/status.json")
# Proves that alerts arrive; it always fires.
WATCHDOG = "Watchdog"
# The command of each service that was ever built on the host.
SERVICES = Path("/usr/local/lib")
MAINTENANCE = Path("/etc/nginx/maintenance")
SRV, RUN, ETC = Path("/srv"), Path("/run"), Path("/etc")


class ServiceState:
    """The state of one service on a host."""

    def __init__(self, module: AnsibleModule, name: str) -> None:
        self.module = module
        self.name = name
        self.home, self.run, self.etc = (folder / name for folder in (SRV, RUN, ETC))

    def state(self, *, database: bool) -> dict[str, Any]:
        """Return what status.yml shows of the service."""
        return {
            "release": self.release(),
            "workers": self.workers(),
            "last_deploy": next(reversed(self.history()), None),
            "lock": read_json(self.run / "deploy.lock") or None,
            "configuration": self.configuration(),
            "configured": self.configured(),
            "revision": self.revision() if database else None,
        }

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
        unit = f"{self.name}@{live.readlink().name}.service"
        shown = output(self.module, "systemctl", "show", "--value", "--property=ControlGroup", unit).strip()
        try:
            processes = Path(f"/sys/fs/cgroup{shown}/cgroup.procs").read_text().split() if shown else []
        except OSError:
            return 0
        return max(len(processes) - 1, 0)

    def history(self) -> list[dict[str, Any]]:
        """Return the service's releases on this host, oldest first."""
        return read_history(self.home / "history.jsonl")

    def configuration(self) -> str | None:
        """Return a digest of the service's settings and credentials, to compare hosts."""
        # Only the host that migrates has the credentials of the database's owner.
        owner = re.compile(r"database_owner_password|migration-.*")
        files = sorted(
            path for path in self.etc.rglob("*") if path.is_file() and not owner.fullmatch(path.name)
        )
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
        """Return the revision of the database's schema, if Alembic manages it."""
        psql = ["psql", "--no-psqlrc", "-Atd", self.name, "-c"]
        query = "SELECT string_agg(version_num, ' ' ORDER BY version_num) FROM alembic_version"
        return output(self.module, "runuser", "-u", "postgres", "--", *psql, query).strip() or None


def certificate_name(path: Path) -> str:
    """Return the name of a certificate's file, or of its directory as the role acme has it."""
    return path.parent.name if path.name == "fullchain.pem" else path.stem


class HostState:
    """The state of one host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def services(self) -> dict[str, dict[str, Any]]:
        """Return the state of each service that has its instances or its database on the host."""
        return {
            service["name"]: {
                "runs": service["runs"],
                **ServiceState(self.module, service["name"]).state(database=service["database"]),
            }
            for service in self.module.params["services"]
        }

    def certificates(self) -> dict[str, tuple[float, float]]:
        """Return the seconds that each certificate has left, and those of its lifetime.

        `served` is the one that the site answers with.
        """
        files = map(Path, self.module.params["certificates"])
        texts = {certificate_name(path): path.read_text() for path in files if path.exists()}
        if self.module.params["edge"]:
            try:
                texts["served"] = ssl.get_server_certificate(("127.0.0.1", 443), timeout=3)
            except OSError:
                texts["served"] = ""
        found = {}
        for name, text in texts.items():
            command = ("openssl", "x509", "-noout", "-startdate", "-enddate")
            lines = output(self.module, *command, text=text).split("\n")
            times = [ssl.cert_time_to_seconds(line.partition("=")[2]) for line in lines if "=" in line]
            found[name] = (times[1] - time.time(), times[1] - times[0]) if times else (0.0, 0.0)
        return found

    def listed_units(self) -> list[dict[str, str]]:
        """Return the units that systemd has loaded."""
        command = ("systemctl", "list-units", "--all", "--no-pager", "--output=json")
        units: list[dict[str, str]] = json.loads(output(self.module, *command) or "[]")
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

    def maintenance(self) -> dict[str, dict[str, Any]]:
        """Return the start and the message of each service's maintenance mode that is on."""
        return {
            path.parent.name: {"since": path.stat().st_mtime, "message": path.read_text().strip()}
            for path in sorted(MAINTENANCE.glob("*/on"))
        }


def output(module: AnsibleModule, *command: str, text: str | None = None) -> str:
    """Return a command's output, empty if it failed: the report must not end at one broken part."""
    return str(module.run_command(list(command), data=text)[1])


def firing(alerts: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Return what status.yml shows of Alertmanager's alerts, but not of the watchdog."""
    return [
        {
            "name": alert["labels"]["alertname"],
            "instance": alert["labels"].get("instance", ""),
            "service": alert["labels"].get("service", ""),
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
    own: Iterable[str],
    services: Iterable[str],
) -> dict[str, list[str]]:
    """Return the active units of marked roles that the host no longer has, and of services that have left.

    own: The services that run on the host.
    services: The services that were ever built there.
    """
    active = [unit["unit"] for unit in listed if unit["load"] == "loaded" and unit["active"] == "active"]

    def matching(role: str, *names: str) -> list[str]:
        patterns = {pattern.format(name) for pattern in UNITS.get(role, ()) for name in names or [""]}
        return [unit for unit in active if any(fnmatch.fnmatch(unit, pattern) for pattern in patterns)]

    services, left = list(services), sorted(set(marks) - set(roles))
    found = {role: matching(role, *(services if role == "app" else ())) for role in left}
    gone = [] if "app" in found else sorted(set(services) - set(own))
    others = {name: matching("app", name) for name in gone}
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
    fields = {
        "name": {"type": "str", "required": True},
        "runs": {"type": "bool", "required": True},
        "database": {"type": "bool", "required": True},
        "units": {"type": "list", "elements": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "dict", "required": True, "options": fields},
            "units": {"type": "list", "elements": "str", "required": True},
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
        built = [path.parent.name.removesuffix("-release") for path in SERVICES.glob("*-release/__main__.py")]
        services = module.params["services"]
        units = module.params["units"] + [unit for service in services for unit in service["units"]]
        certificates = state.certificates()
        status = {
            "name": socket.gethostname(),
            "services": state.services(),
            "certificates": {name: int(left // DAY) for name, (left, _) in certificates.items()},
            "expiring": [
                name
                for name, (left, lifetime) in certificates.items()
                if left < min(EXPIRING_SHARE * lifetime, EXPIRING_SECONDS) or left <= 0
            ],
            "renewals": read_json(ACME) if "acme" in module.params["roles"] else {},
            "backups": read_json(BACKUPS) if "pgbackrest" in module.params["roles"] else {},
            "disks": disks(),
            "units": unit_states(listed, units),
            "alerts": state.alerts(),
            "leftovers": leftovers(
                listed,
                read_marks(),
                module.params["roles"],
                [service["name"] for service in services if service["runs"]],
                built,
            ),
            "maintenance": state.maintenance(),
        }
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"The host's state could not be read: {error}.")
    module.exit_json(changed=False, status=status)


if __name__ == "__main__":
    main()
