"""A database host whose backups a test restores."""

from __future__ import annotations

import datetime
import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import Lab, Run, play

DATABASE = "api"


@dataclass
class Data:
    """A database host of a scenario."""

    lab: Lab
    inventory: Path
    host: str
    measured: list[str]

    def ssh(self, command: str) -> str:
        """Run a command on the host."""
        return self.lab.ssh(self.host, command)

    def sql(self, statement: str, database: str = DATABASE) -> str:
        """Return what Postgres answers to its superuser."""
        return self.ssh(
            f"cd / && runuser -u postgres -- psql -XqAt -d {database} -c {shlex.quote(statement)}"
        ).strip()

    def backups(self, *words: str) -> Any:
        """Return what a command of fastmetal-backups prints as JSON."""
        return json.loads(self.ssh(f"fastmetal-backups {shlex.join(words)}"))

    def refusal(self, *words: str) -> str:
        """Return the sentence with which a command of fastmetal-backups fails."""
        command = f"fastmetal-backups {shlex.join(words)}"
        done = subprocess.run(
            ["ssh", "-F", self.lab.directory / "ssh_config", self.host, command],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout
        (sentence,) = done.stderr.strip().splitlines()
        return sentence

    def play(self, playbook: str, *words: str) -> Run:
        """Run a playbook of the scenario."""
        return play("-i", self.inventory, f"playbooks/{playbook}", *words)

    def restore(self, target: str) -> str:
        """Restore by the playbook and return its output."""
        run = self.play(
            "restore.yml", "-e", f"host={self.host}", "-e", f"target='{target}'", "-e", "confirm=lab"
        )
        assert run.status == 0, run.output
        return run.output

    def now(self) -> str:
        """Return the time of the host, with a pause before and after it."""
        time.sleep(1.1)
        text = self.ssh("date -u +%FT%T.%N").strip()[:23]
        time.sleep(0.1)
        return text + "+00:00"

    def list(self) -> list[str]:
        """Return the labels of the backups, oldest first."""
        return [line.split()[0] for line in self.ssh("fastmetal-backups list").splitlines()]

    def wait_until_archived(self, seconds: float = 30) -> None:
        """End the current segment and wait until the repository has it."""
        name = self.sql("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + seconds
        while self.sql(f"SELECT coalesce(last_archived_wal >= '{name}', false) FROM pg_stat_archiver") != "t":
            assert time.monotonic() < deadline, self.sql("SELECT * FROM pg_stat_archiver")
            time.sleep(0.2)

    @contextmanager
    def changed(self, path: str, script: str) -> Iterator[None]:
        """Change a file by a script of sed for a while."""
        self.ssh(f"cp -p {path} /root/kept && sed -i '{script}' {path}")
        try:
            yield
        finally:
            self.ssh(f"mv /root/kept {path}")

    @contextmanager
    def without_repository(self) -> Iterator[None]:
        """Take the repository away, as an unmounted disk does."""
        self.ssh("mv /var/lib/pgbackrest /var/lib/pgbackrest.away && install -d -m 0555 /var/lib/pgbackrest")
        try:
            yield
        finally:
            self.ssh("rmdir /var/lib/pgbackrest && mv /var/lib/pgbackrest.away /var/lib/pgbackrest")


def utc(moment: str) -> float:
    """Return a time of a host in seconds since 1970."""
    return datetime.datetime.fromisoformat(moment).timestamp()
