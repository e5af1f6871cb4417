#!/usr/bin/python3
"""Remove a service's units, files, account and database from a host."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fastmetal.metal.plugins.module_utils.files import write_atomically
from ansible_collections.fastmetal.metal.plugins.module_utils.marks import MARKS, read_marks
from ansible_collections.fastmetal.metal.plugins.module_utils.systemd import SystemctlError, systemctl

DOCUMENTATION = r"""
module: service_removal
short_description: Remove a service's units, files, account and database from a host
description:
  - Removes what the roles app and postgresql have made for a service.
  - Removes nothing of a service that the host's marks do not name.
  - In check mode it returns what it would remove.
  - Keys in Redis stay, as Redis has no account that may read those of all services.
author: Fastmetal
options:
  service: {type: str, required: true, description: "The service's name."}
  environment: {type: str, required: true, description: "The environment that the host has to belong to."}
  database_port: {type: int, default: 5432, description: "The port of Postgres, which names its socket."}
"""

EXAMPLES = r"""
- name: Remove the service
  fastmetal.metal.service_removal:
    service: shop
    environment: production
"""

RETURN = r"""
found: {type: list, returned: always, description: "What there is, as words for the operator."}
"""

ROOT = Path("/")
# {} is the service's name.
UNITS = ("{}.service", "{}.socket", "{}@*.service", "{}-job-*", "{}-worker-*", "{}-workers.target")
PATHS = (
    *(
        "etc/{}",
        "etc/tmpfiles.d/{}.conf",
        "etc/systemd/system/services.slice.d/{}.conf",
        "srv/{}",
        "var/lib/{}",
        "run/{}",
        "usr/local/lib/{}-release",
    ),
    "etc/systemd/system/{}-workers.target.wants",
    *("usr/local/sbin/{}-manage", "usr/local/sbin/{}-release", "usr/local/sbin/{}-run"),
)
UNIT_FILES = "etc/systemd/system"
# A database of another owner is not the service's.
DATABASES = (
    "SELECT datname FROM pg_database"
    " WHERE datname = '{0}' AND pg_get_userbyid(datdba) IN ('{0}', '{0}_owner')"
)
ROLES = "SELECT rolname FROM pg_roles WHERE rolname IN ('{0}', '{0}_owner') ORDER BY 1"
SIZE = "SELECT pg_size_pretty(pg_database_size('{0}'))"


class RemovalError(Exception):
    """A failure, as one sentence for the operator."""


class Removal:
    """What a host has of one service."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.service: str = module.params["service"]
        marks = read_marks(ROOT)
        self.marks = {role: mark for role, mark in marks.items() if self.service in mark.get("services", ())}
        environment = module.params["environment"]
        others = {mark.get("environment", environment) for mark in self.marks.values()} - {environment}
        if others:
            raise RemovalError(f"The host belongs to the environment {' and '.join(sorted(others))}.")

    def run(self, *argv: str) -> str:
        """Run a command and return its output."""
        status, output, errors = self.module.run_command(list(argv))
        if status:
            raise RemovalError(f"`{argv[0]}` failed: {(errors or output).strip()}")
        return str(output).strip()

    def query(self, sql: str, database: str = "postgres") -> list[str]:
        """Run SQL as the superuser and return the lines of its answer."""
        port = f"--port={self.module.params['database_port']}"
        options = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1")
        arguments = (*options, port, f"--dbname={database}", f"--command={sql}")
        return self.run("runuser", "-u", "postgres", "--", "psql", *arguments).splitlines()

    # --- what there is

    def units(self) -> list[str]:
        """Return the names of the service's unit files."""
        folder = ROOT / UNIT_FILES
        names = [path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
        patterns = [pattern.format(self.service) for pattern in UNITS]
        return sorted(name for name in names if any(fnmatch.fnmatchcase(name, one) for one in patterns))

    def paths(self) -> list[Path]:
        """Return the service's files and directories."""
        return [path for name in PATHS if (path := ROOT / name.format(self.service)).exists()]

    def account(self) -> bool:
        """Return whether the service's account exists."""
        return any(
            line.startswith(f"{self.service}:") for line in (ROOT / "etc/passwd").read_text().splitlines()
        )

    def is_primary(self) -> bool:
        """Return whether this host's Postgres has the databases to change; a standby follows."""
        return self.query("SELECT pg_is_in_recovery()") == ["f"]

    def databases(self) -> list[str]:
        """Return the service's database, if there is one."""
        return self.query(DATABASES.format(self.service))

    def roles(self) -> list[str]:
        """Return the service's roles in Postgres."""
        return self.query(ROLES.format(self.service))

    def describe(self) -> Iterator[str]:
        """Yield what there is, as words for the operator."""
        if "app" in self.marks:
            if units := self.units():
                yield f"{len(units)} units ({', '.join(units)})"
            yield from (f"/{path.relative_to(ROOT)}" for path in self.paths())
            if self.account():
                yield f"the account {self.service}"
        if "postgresql" in self.marks and self.is_primary():
            for name in self.databases():
                yield f"the database {name} ({self.query(SIZE.format(name))[0]})"
            yield from (f"the database role {name}" for name in self.roles())

    # --- removal

    def remove(self) -> None:
        """Remove everything, and the service from the marks, last: an interrupted run can go on."""
        if "app" in self.marks:
            self.remove_app()
        if "postgresql" in self.marks and self.is_primary():
            for name in self.databases():
                self.query(f'DROP DATABASE "{name}" WITH (FORCE)')
            for name in self.roles():
                self.query(f'DROP ROLE "{name}"')
        for role, mark in self.marks.items():
            left = [name for name in mark["services"] if name != self.service]
            write_atomically(ROOT / MARKS / f"{role}.json", json.dumps({**mark, "services": left}) + "\n")

    def remove_app(self) -> None:
        """Stop and remove the units, then the files and the account."""
        # Jobs and the socket first, so that nothing starts the service again.
        if units := sorted(self.units(), key=lambda name: name.startswith(f"{self.service}@")):
            systemctl("disable", "--quiet", "--now", "--no-warn", *units)
            for name in units:
                (ROOT / UNIT_FILES / name).unlink()
            systemctl("daemon-reload")
        for path in self.paths():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.account():
            self.run("userdel", self.service)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        {
            "service": {"type": "str", "required": True},
            "environment": {"type": "str", "required": True},
            "database_port": {"type": "int", "default": 5432},
        },
        supports_check_mode=True,
    )
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", module.params["service"]):
        module.fail_json(msg=f"{module.params['service']!r} is no name of a service.")
    try:
        removal = Removal(module)
        found = list(removal.describe())
        if removal.marks and not module.check_mode:
            removal.remove()
    except (RemovalError, SystemctlError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(removal.marks), found=found)


if __name__ == "__main__":
    main()
