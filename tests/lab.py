"""Lab hosts and Ansible runs for tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LABCTL = ROOT / "roles/lab/files/labctl.py"
SHARED_GROUP_VARS = ROOT / "group_vars/all"
LAB_GROUP_VARS = ROOT / "inventories/lab/group_vars"
# Services whose databases and Redis users the host of tests/app has; an argument of ansible-playbook.
SERVICES = json.dumps(
    {
        "services": {
            "api": {},
            "shop": {
                "source": "/shop",
                "database": True,
                "database_driver": "postgresql+asyncpg",
                "database_extensions": ["pg_trgm"],
                "database_connections": 5,
                "cache": True,
                "queue": True,
            },
            "mail": {
                "source": "/mail",
                "database": True,
                "database_connections": 5,
                "cache": True,
                "cache_prefix": "mail:",
                "queue": True,
            },
        },
        "redis_instances": {"queue": {"maxmemory_mb": 32}},
    }
)
GROUPS = ("edge", "app", "postgres", "redis", "monitoring")


def clean_environment(**variables: str) -> dict[str, str]:
    """Return the environment without ANSIBLE_* variables, with this interpreter's tools first in PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "ANSIBLE_NOCOLOR": "1", **variables}


def labctl(*arguments: str) -> str:
    """Run labctl and return its output; raise RuntimeError with its message if it fails."""
    done = subprocess.run([LABCTL, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"labctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class Lab:
    """The hosts of one lab."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = ROOT / ".lab" / name

    def up(self, **releases: str) -> float:
        """Start exactly these hosts ({name: RELEASE[:FAMILY]}); return the seconds until SSH works on all."""
        start = time.monotonic()
        hosts = [word for name, release in releases.items() for word in ("--host", f"{name}:{release}")]
        labctl("up", self.name, *hosts)
        return time.monotonic() - start

    def down(self) -> None:
        """Remove the lab."""
        labctl("down", self.name)

    @property
    def state(self) -> dict[str, Any]:
        """Return labctl's state of the lab."""
        state: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        return state

    def ssh(self, host: str, command: str) -> str:
        """Run a command on a host and return its output."""
        done = subprocess.run(
            ["ssh", "-F", self.directory / "ssh_config", "-o", "ConnectTimeout=5", host, command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{host}: {command}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def digest(self, host: str) -> str:
        """Return a digest of a host's packages and files, including the time of each file's last change."""
        files = r"find /etc /opt /root/.ssh /srv /usr/local -xdev -printf '%p %C@ %m %u %g\n'"
        return self.ssh(host, f"{{ dpkg-query -W; {files}; }} | sha256sum")


def make_environment(directory: Path, hosts: Mapping[str, Mapping[str, Any]], **variables: Any) -> Path:
    """Write an environment with the hosts of lab "pytest" in every group, and return its directory."""
    folder = directory / "group_vars/all"
    folder.mkdir(parents=True)
    (folder / "00-shared").symlink_to(SHARED_GROUP_VARS)
    (folder / "vault.yml").symlink_to(LAB_GROUP_VARS / "all/vault.yml")
    (directory / "group_vars/lab.yml").symlink_to(LAB_GROUP_VARS / "lab.yml")
    variables = {"environment_name": "pytest", "__lab_checkout": str(ROOT), "lab_name": "pytest"} | variables
    (folder / "main.yml").write_text(yaml.safe_dump(variables))
    groups = {group: {"hosts": {**hosts}} for group in ("lab", *GROUPS)}
    (directory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    return directory


@dataclass
class Run:
    """The result of a playbook run."""

    status: int
    output: str

    @property
    def sentences(self) -> list[str]:
        """Return the messages of failed tasks; "" for a failure without message."""
        decode = json.JSONDecoder().raw_decode
        starts = re.finditer(r"^fatal: \[.*?\]: [A-Z!]+ => ", self.output, re.MULTILINE)
        return [decode(self.output, start.end())[0].get("msg", "") for start in starts]

    @property
    def changed(self) -> dict[str, int]:
        """Return {host: number of tasks that changed it}."""
        found = re.findall(r"^(\S+) +: ok=.* changed=(\d+)", self.output, re.MULTILINE)
        return {host: int(count) for host, count in found}


def play(*arguments: str | Path, root: Path = ROOT, **variables: str) -> Run:
    """Run ansible-playbook in a checkout and return its result."""
    environment = clean_environment(ANSIBLE_CALLBACK_RESULT_FORMAT="json", **variables)
    command = ["ansible-playbook", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return Run(done.returncode, done.stdout + done.stderr)


def host_variables(inventory: Path, host: str) -> dict[str, Any]:
    """Return a host's variables in an inventory, including secrets."""
    command: list[str | Path] = ["ansible-inventory", "-i", inventory, "--host", host]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, check=True)
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def wait_until(seconds: float, holds: Callable[[], object]) -> None:
    """Wait until a condition holds; the failure is its last AssertionError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            assert holds()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return
