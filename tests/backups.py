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
    backup_host: str = ""

    @property
    def keeper(self) -> str:
        """Return the host that has the repositories."""
        return self.backup_host or self.host

    def ssh(self, command: str) -> str:
        """Run a command on the host."""
        return self.lab.ssh(self.host, command)

    def keep(self, command: str) -> str:
        """Run a command on the host that has the repositories."""
        return self.lab.ssh(self.keeper, command)

    def place(self, word: str) -> str:
        """Return the host that runs a command of fastmetal-backups."""
        return self.keeper if word in ("adopt", "backup", "create", "drill", "list", "status") else self.host

    def sql(self, statement: str, database: str = DATABASE) -> str:
        """Return what Postgres answers to its superuser."""
        return self.ssh(
            f"cd / && runuser -u postgres -- psql -XqAt -d {database} -c {shlex.quote(statement)}"
        ).strip()

    def backups(self, *words: str) -> Any:
        """Return what a command of fastmetal-backups prints as JSON."""
        return json.loads(self.lab.ssh(self.place(words[0]), f"fastmetal-backups {shlex.join(words)}"))

    def refusal(self, *words: str) -> str:
        """Return the sentence with which a command of fastmetal-backups fails."""
        command = f"fastmetal-backups {shlex.join(words)}"
        done = subprocess.run(
            ["ssh", "-F", self.lab.directory / "ssh_config", self.place(words[0]), command],
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
        return [line.split()[0] for line in self.keep("fastmetal-backups list").splitlines()]

    def wait_until_archived(self, seconds: float = 30) -> None:
        """End the current segment and wait until the repository has it."""
        name = self.sql("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + seconds
        while not self.has_archived(name):
            assert time.monotonic() < deadline, name
            time.sleep(0.2)

    def has_archived(self, name: str) -> bool:
        """Return whether the repository has a segment."""
        if self.backup_host:
            return bool(self.keep(f"find /var/lib/pgbackrest/archive -name '{name}-*'"))
        query = f"SELECT coalesce(last_archived_wal >= '{name}', false) FROM pg_stat_archiver"
        return self.sql(query) == "t"

    def back_up(self, kind: str = "diff") -> None:
        """Take a backup as the timer does."""
        self.keep(f"systemctl start fastmetal-backup@{kind}")

    @contextmanager
    def changed(self, path: str, script: str) -> Iterator[None]:
        """Change a file by a script of sed for a while, on the host that has the repositories."""
        self.keep(f"cp -p {path} /root/kept && sed -i '{script}' {path}")
        try:
            yield
        finally:
            self.keep(f"mv /root/kept {path}")

    @contextmanager
    def without_repository(self, path: str = "/var/lib/pgbackrest") -> Iterator[None]:
        """Take a repository away, as an unmounted disk does."""
        self.keep(f"mv {path} {path}.away && install -d -m 0555 {path}")
        try:
            yield
        finally:
            self.keep(f"rmdir {path} && mv {path}.away {path}")


def utc(moment: str) -> float:
    """Return a time of a host in seconds since 1970."""
    return datetime.datetime.fromisoformat(moment).timestamp()
