"""Receive the write-ahead log (WAL) of a database host as it is written, and archive each segment."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import Cluster, primary
from commands import account_words
from errors import BackupError
from repository import Repository

SLOT = "fastmetal_backups"
FINISHED = re.compile(r"[0-9A-F]{24}|[0-9A-F]{8}\.history")
PARTIAL = ".partial"
PAUSE_SECONDS = 1.0
RETRY_SECONDS = 5.0


def receive(settings: Mapping[str, Any]) -> None:
    """Receive for ever; after a failure begin again."""
    while True:
        try:
            Receiver(settings).run()
        except BackupError as error:
            print(error, file=sys.stderr, flush=True)
        time.sleep(RETRY_SECONDS)


def received_folder(settings: Mapping[str, Any]) -> Path:
    """Return the directory of what is not archived yet; database hosts read it, as it is in repository 1."""
    return Path(settings["repositories"][0]) / "received"


class Receiver:
    """One connection of pg_receivewal, which writes each segment to a file as the server does."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.repository = Repository(settings["stanza"])
        self.cluster: Cluster = primary(settings)
        self.folder = received_folder(settings)
        self.fault = ""

    def run(self) -> None:
        """Receive and archive until the connection ends, and raise BackupError with the reason."""
        self.folder.mkdir(mode=0o750, exist_ok=True)
        self.require_known_cluster()
        self.archive()
        if self.is_abandoned():
            self.give_up_partial()
        self.require_slot()
        command = [*account_words(), "pg_receivewal", "--no-loop", "-D", str(self.folder), f"--slot={SLOT}"]
        child = subprocess.Popen(
            command, env=self.cluster.environment, stderr=subprocess.PIPE, text=True, cwd="/"
        )
        try:
            while child.poll() is None:
                self.try_to_archive()
                time.sleep(PAUSE_SECONDS)
        finally:
            child.terminate()
            said = child.communicate()[1]
        self.archive()
        raise BackupError(f"The stream of the WAL ended: {' '.join(said.split())}")

    def require_known_cluster(self) -> None:
        """Raise BackupError unless the server is the one whose backups the repository has."""
        known = self.repository.info.get("db", ())
        if not known:
            raise BackupError(f"The repository has no stanza {self.repository.stanza} yet: run site.yml.")
        if str(known[-1]["system-id"]) != self.cluster.query(
            "SELECT system_identifier FROM pg_control_system()"
        ):
            raise BackupError("The repository has backups of another cluster than the database host's.")

    def try_to_archive(self) -> None:
        """Archive, or say why not: a repository that is away must not end the stream."""
        said, self.fault = self.fault, ""
        try:
            self.archive()
        except BackupError as error:
            self.fault = str(error)
            if self.fault != said:
                print(f"The WAL cannot be archived: {error}", file=sys.stderr, flush=True)

    def archive(self) -> None:
        """Move what is complete into the repositories, oldest first."""
        for file in sorted(self.folder.iterdir(), key=lambda file: file.name):
            if FINISHED.fullmatch(file.name):
                # Without a cluster that would have to be on this host.
                self.repository.run("--config=/etc/pgbackrest.conf", "archive-push", str(file))
                file.unlink()

    def is_abandoned(self) -> bool:
        """Return whether the newest segment is of a timeline that the server has left."""
        newest = max((file.name for file in self.folder.glob(f"*{PARTIAL}")), default="")
        return bool(newest) and int(newest[:8], 16) < self.cluster.timeline

    def give_up_partial(self) -> None:
        """Archive a segment that nothing will complete, as it is: its timeline has ended."""
        for file in self.folder.glob(f"*{PARTIAL}"):
            file.rename(file.with_suffix(""))
        self.archive()

    def require_slot(self) -> None:
        """Create the replication slot, for which the server keeps what was not received yet."""
        slots = self.cluster.query("SELECT slot_name, wal_status FROM pg_replication_slots").splitlines()
        state = dict(slot.split("\t") for slot in slots).get(SLOT, "")
        if state == "lost":
            print("The server has removed WAL that was not received: the archive has a gap.", file=sys.stderr)
            self.give_up_partial()
            self.cluster.query(f"SELECT pg_drop_replication_slot('{SLOT}')")
        if state in ("", "lost"):
            self.cluster.query(f"SELECT pg_create_physical_replication_slot('{SLOT}', true)")
