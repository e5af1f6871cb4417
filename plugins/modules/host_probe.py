#!/usr/bin/python3
"""Read what preflight judges on a host: space, packages, listeners, and what is not managed here."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import pwd
import re
import shutil
import socket
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fastmetal.metal.plugins.module_utils.marks import read_marks

DOCUMENTATION = r"""
module: host_probe
short_description: Read the space, packages, listeners and owners of a host
description:
  - Changes nothing.
  - What a role would take over counts as held only if it is more than a freshly installed package leaves.
author: Fastmetal
options:
  directories: {type: list, elements: path, required: true, description: "Where free space is measured."}
  services: {type: list, elements: str, default: [], description: "The names of the host's services."}
"""

RETURN = r"""
free_mb: {type: int, returned: always, description: "The least free space of the directories in MiB."}
packages: {type: list, returned: always, description: "The installed packages."}
interrupted: {type: bool, returned: always, description: "Whether an installation was interrupted."}
listeners: {type: list, returned: always, description: "C(port), C(loopback), C(program) and C(unit)."}
marks: {type: dict, returned: always, description: "The marks of the managed functions by role."}
holdings: {type: dict, returned: always, description: "Things to take over by role; of app by service."}
login: {type: str, returned: always, description: "The account that logged in, if it used sudo."}
keys: {type: dict, returned: always, description: "Authorized keys of the accounts other than root."}
"""

EXAMPLES = r"""
- name: Read what preflight judges
  fastmetal.metal.host_probe:
    directories: [/, /var]
    services: [api]
"""

ROOT = Path("/")
# Ansible's apt module writes this to keep services from starting; a killed run leaves it behind.
GUARD_FILE = Path("/usr/sbin/policy-rc.d")
GUARD = "#!/bin/sh\nexit 101\n"
# Configuration files of packages: the operator's, if they differ from the packages'. {role: patterns}
CONFIGURATION = {
    "alertmanager": ("/etc/prometheus/alertmanager.yml", "/etc/default/prometheus-alertmanager"),
    "exporter": (
        "/etc/default/prometheus-*-exporter",
        "/etc/prometheus/*exporter*",
        "/etc/prometheus/blackbox*",
    ),
    "grafana": ("/etc/grafana/*", "/etc/default/grafana-server"),
    "logs": ("/etc/systemd/journal-remote.conf", "/etc/systemd/journal-upload.conf"),
    "nginx": ("/etc/nginx/*",),
    "pgbackrest": ("/etc/pgbackrest.conf",),
    "prometheus": ("/etc/prometheus/prometheus.yml", "/etc/default/prometheus"),
    "redis": ("/etc/redis/*",),
}
# Files that no package installs. {role: patterns}
FILES = {
    "grafana": ("var/lib/grafana/grafana.db",),
    "nginx": ("etc/nginx/sites-enabled/*", "etc/nginx/conf.d/*.conf"),
    # pgBackRest prefers it to the package's own.
    "pgbackrest": ("etc/pgbackrest/pgbackrest.conf",),
    "prometheus": ("etc/prometheus/rules/*",),
}
# The distribution's own site, which CONFIGURATION judges.
PACKAGED = {"/etc/nginx/sites-enabled/default"}
# Databases and tables of users have object numbers from here on.
FIRST_OBJECT = 16384
# An RDB file names a database only if that has keys.
RDB_DATABASE = re.compile(rb"\xfe.\xfb", re.DOTALL)
NO_LOGIN = ("/nonexistent", "/usr/sbin/nologin")


def packages(listed: str) -> tuple[list[str], dict[str, str]]:
    """Return the installed packages, and the digests of their configuration files.

    listed has a line for each package ("ii name"), and one for each configuration file (" path digest").
    """
    installed, digests = [], {}
    for line in listed.splitlines():
        words = line.split()
        if line.startswith("ii "):
            installed.append(words[1])
        elif line.startswith(" ") and len(words) == 2:  # A third word says that it is obsolete.
            digests[words[0]] = words[1]
    return installed, digests


def changed_files(digests: dict[str, str], root: Path = ROOT) -> dict[str, list[str]]:
    """Return the packages' configuration files that were changed, by role."""
    found: dict[str, list[str]] = {}
    for path, digest in sorted(digests.items()):
        for role, patterns in CONFIGURATION.items():
            file = root / path.lstrip("/")
            if not any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns) or not file.is_file():
                continue
            if hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() != digest:
                found.setdefault(role, []).append(path)
    return found


def added_files(root: Path = ROOT) -> dict[str, list[str]]:
    """Return files that no package installs, by role."""
    found = {
        role: [f"/{path.relative_to(root)}" for pattern in patterns for path in sorted(root.glob(pattern))]
        for role, patterns in FILES.items()
    }
    return {role: [path for path in paths if path not in PACKAGED] for role, paths in found.items()}


def clusters(root: Path = ROOT) -> list[str]:
    """Return the main clusters of Postgres that have databases or tables of a user."""
    held = []
    for configuration in sorted(root.glob("etc/postgresql/*/main/postgresql.conf")):
        version = configuration.parts[-3]
        text = configuration.read_text(errors="replace")
        named = re.search(r"^data_directory *=? *'([^']+)'", text, re.MULTILINE)
        data = root / (named[1].lstrip("/") if named else f"var/lib/postgresql/{version}/main")
        names = [path.name for pattern in ("*", "*/*") for path in (data / "base").glob(pattern)]
        if any(name.isdigit() and int(name) >= FIRST_OBJECT for name in names):
            held.append(f"the PostgreSQL cluster {version}/main with data")
    return held


def redis_data(root: Path = ROOT, port: int = 6379) -> list[str]:
    """Return the server of the package if it has keys, in memory or in its files."""
    data = root / "var/lib/redis"
    dumps = [*data.glob("dump.rdb"), *data.glob("appendonlydir/*.rdb")]
    logs = [*data.glob("appendonlydir/*.incr.aof"), *data.glob("appendonly.aof")]
    stored = any(RDB_DATABASE.search(path.read_bytes()[:4096][:-9]) for path in dumps)
    if stored or any(path.stat().st_size for path in logs) or b"\ndb" in ask_redis(port):
        return ["the data of redis-server"]
    return []


def ask_redis(port: int) -> bytes:
    """Return the answer of a Redis server to INFO keyspace, empty without a server."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"INFO keyspace\r\n")
            return connection.recv(4096)
    except OSError:
        return b""


def service_files(service: str, root: Path = ROOT) -> list[str]:
    """Return what has the service's name: an account, units and directories."""
    units = [f"etc/systemd/system/{service}.{kind}" for kind in ("service", "socket")]
    found = [f"/{path}" for path in units if (root / path).is_file()]
    folders = [root / name / service for name in ("etc", "srv")]
    found += [f"/{path.relative_to(root)}" for path in folders if path.is_dir() and any(path.iterdir())]
    try:
        account = pwd.getpwnam(service)
    except KeyError:
        return found
    if (account.pw_dir, account.pw_shell) != NO_LOGIN:
        found.append(f"the account {service} ({account.pw_dir}, {account.pw_shell})")
    return found


def authorized_keys() -> dict[str, list[str]]:
    """Return the authorized keys of each account other than root, without options and comments."""
    found = {}
    for account in pwd.getpwall():
        file = Path(account.pw_dir, ".ssh/authorized_keys")
        if account.pw_uid and file.is_file():
            text = file.read_text(errors="replace")
            found[account.pw_name] = re.findall(
                r"^(?!#).*?\b(?:ssh|ecdsa|sk)-\S+ (AAAA\S+)", text, re.MULTILINE
            )
    return found


def unit_of(cgroups: str) -> str:
    """Return the unit of a process from the text of its /proc/PID/cgroup, empty without one."""
    units = re.findall(r"/([^/\n]+\.(?:service|scope))(?=/|$)", cgroups, re.MULTILINE)
    return units[-1] if units else ""


def listeners(sockets: str, activated: str, proc: Path = Path("/proc")) -> list[dict[str, Any]]:
    """Return the TCP listeners, from the output of `ss` and of `systemctl list-sockets`."""
    # PID 1 holds the sockets of socket units.
    named = (line.split() for line in activated.splitlines() if ":" in line)
    units = {words[0].rpartition(":")[2]: words[1] for words in named}
    found = []
    for line in sockets.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        loopback = address.startswith(("127.", "[::1]", "[::ffff:127."))
        for program, pid in re.findall(r'\("([^"]+)",pid=(\d+)', line) or [("an unknown program", "")]:
            cgroups = proc / pid / "cgroup"
            unit = unit_of(cgroups.read_text()) if pid and cgroups.is_file() else ""
            if pid == "1":
                unit = units.get(port, "")
            found.append({"port": int(port), "loopback": loopback, "program": program, "unit": unit})
    return found


def free_mb(directories: list[str]) -> int:
    """Return the least free space of directories in MiB; one that is missing counts by its parent."""
    chains = ((Path(name), *Path(name).parents) for name in directories)
    existing = [next(path for path in chain if path.exists()) for chain in chains]
    return min(shutil.disk_usage(path).free for path in existing) >> 20


def holdings(digests: dict[str, str], services: list[str]) -> dict[str, Any]:
    """Return what the roles would take over, by role; of app by service."""
    found: dict[str, Any] = changed_files(digests)
    for role, items in added_files().items():
        found.setdefault(role, []).extend(items)
    found["postgresql"] = clusters()
    found.setdefault("redis", []).extend(redis_data())
    found["app"] = {name: service_files(name) for name in services}
    return {role: items for role, items in sorted(found.items()) if items}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "path", "required": True},
            "services": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )

    def output(*command: str) -> str:
        """Return a command's output; a host without the command is refused for its release."""
        return str(module.run_command(list(command))[1]) if module.get_bin_path(command[0]) else ""

    form = r"${db:Status-Abbrev}${Package}\n${Conffiles}\n"
    installed, digests = packages(output("dpkg-query", "--show", f"--showformat={form}"))
    guarded = GUARD_FILE.is_file() and GUARD_FILE.read_text(errors="replace") == GUARD
    sockets = output("ss", "--no-header", "--listening", "--tcp", "--numeric", "--processes")
    activated = output("systemctl", "list-sockets", "--all", "--no-legend", "--no-pager")
    module.exit_json(
        changed=False,
        free_mb=free_mb(module.params["directories"]),
        packages=installed,
        interrupted=guarded or any(Path("/var/lib/dpkg/updates").glob("*")),
        listeners=listeners(sockets, activated),
        marks=read_marks(),
        holdings=holdings(digests, module.params["services"]),
        login=os.environ.get("SUDO_USER", ""),
        keys=authorized_keys(),
    )


if __name__ == "__main__":
    main()
