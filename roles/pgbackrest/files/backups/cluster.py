"""The cluster of Postgres on this host, and copies of it that a restore or a drill starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import ACCOUNT, ENVIRONMENT, account_words, answer, as_postgres, succeeds
from errors import BackupError

# Not the caller's: a query may take as long as it needs, and its statement is not logged.
SESSION = "-c statement_timeout=0 -c log_min_duration_statement=-1"
POLL_SECONDS = 0.2
# Of the backup host in Postgres; the wiring names it.
ROLE = "fastmetal_backups"
CA = "/etc/fastmetal/tls/ca.crt"
# Settings that a recovery needs at least as large as the server had them, as pg_controldata names them.
CAPACITIES = {
    "max_connections": "max_connections",
    "max_worker_processes": "max_worker_processes",
    "max_wal_senders": "max_wal_senders",
    "max_prepared_xacts": "max_prepared_transactions",
    "max_locks_per_xact": "max_locks_per_transaction",
}
# The end of a statement's answer in a session.
END = "--end of the answer--"


@dataclass(frozen=True)
class Cluster:
    """A server: its data directory, its socket's directory and its port."""

    data: Path
    socket: Path
    port: int
    unit: str

    def query(self, sql: str, database: str = "postgres") -> str:
        """Return the answer to SQL: rows in lines, columns separated by tabs."""
        return as_postgres(*self.psql(database), stdin=sql, environment=self.environment).strip("\n")

    def psql(self, database: str) -> list[str]:
        """Return the command of a session with a database."""
        return ["psql", "-qAtX", "-F\t", "-v", "ON_ERROR_STOP=1", "-d", database]

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of programs that connect to the server, as its superuser."""
        return ENVIRONMENT | {"PGOPTIONS": SESSION, "PGHOST": str(self.socket), "PGPORT": str(self.port)}

    def databases(self) -> list[str]:
        """Return the databases that clients may connect to, the superuser's own included."""
        return self.query("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1").splitlines()

    @property
    def answers(self) -> bool:
        """Return whether the server accepts connections."""
        return succeeds("pg_isready", "-q", environment=self.environment)

    @property
    def position(self) -> int:
        """Return the position at which the next record of the WAL begins, in bytes."""
        return int(self.query("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").partition(".")[0])

    @property
    def timeline(self) -> int:
        """Return the timeline that the server writes."""
        return int(self.query("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"), 16)

    def start(self) -> None:
        """Start the unit and wait until the server accepts writes."""
        answer("systemctl", "start", self.unit)
        self.wait_for("pg_is_in_recovery()", "f")

    def stop(self) -> None:
        """Stop the unit."""
        answer("systemctl", "stop", self.unit)

    def wait_for(self, expression: str, value: str, seconds: float | None = None) -> None:
        """Wait until an expression has a value; raise BackupError if the server ends or the time is over."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                found = self.query(f"SELECT {expression}")
            except BackupError as error:
                # A copy with a name of its own has no other starter.
                found = str(error)
                if not self.running:
                    raise BackupError(self.reason()) from error
            if found == value:
                return
            if deadline and time.monotonic() > deadline:
                raise BackupError(f"Postgres in {self.data} did not reach {expression} = {value}: {found}")
            time.sleep(POLL_SECONDS)

    @property
    def running(self) -> bool:
        """Return whether the unit runs or starts."""
        state = answer("systemctl", "show", "--value", "--property=ActiveState", self.unit).strip()
        return state in ("active", "activating", "reloading")

    def reason(self) -> str:
        """Return why the server has ended."""
        return f"Postgres in {self.data} ended: see `journalctl -u {self.unit}` and its log."


@dataclass(frozen=True)
class Primary(Cluster):
    """The server of a database host, as its backup host reaches it: over TLS, with a role that reads."""

    address: str
    password: str

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of programs that connect to the server."""
        return ENVIRONMENT | {
            # The other option of SESSION is the superuser's.
            "PGOPTIONS": "-c statement_timeout=0",
            "PGHOST": self.address,
            "PGPORT": str(self.port),
            "PGUSER": ROLE,
            "PGPASSWORD": self.password,
            "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": CA,
            "PGCONNECT_TIMEOUT": "10",
        }

    @property
    def running(self) -> bool:
        """Return whether the server may still answer: its unit is on another host."""
        return self.answers


class Copy(Cluster):
    """A server from a restored data directory: small, without an archive or clients of other hosts."""

    @property
    def log(self) -> Path:
        """Return the file that has what the server says."""
        return self.data.with_name(f"{self.data.name}.log")

    def launch(self, configuration: Path, binaries: Path, **options: str) -> None:
        """Start the server as a unit of its own; return once it recovers or accepts connections."""
        settings = {
            "config_file": f"{configuration}/postgresql.conf",
            "data_directory": str(self.data),
            "external_pid_file": "",
            "port": str(self.port),
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket),
            "archive_mode": "off",
            "ssl": "off",
            "logging_collector": "off",
            "log_destination": "stderr",
            # Those of the server would need its memory twice, and pg_cron would run its jobs.
            "shared_buffers": "128MB",
            "shared_preload_libraries": "",
            "autovacuum": "off",
            **{setting: self.control(f"{name} setting") for name, setting in CAPACITIES.items()},
            **options,
        }
        self.socket.mkdir(mode=0o750, exist_ok=True)
        shutil.chown(self.socket, ACCOUNT, ACCOUNT)
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        succeeds("systemctl", "reset-failed", self.unit)
        command = [
            *("systemd-run", "--quiet", f"--unit={self.unit}", f"--uid={ACCOUNT}", f"--gid={ACCOUNT}"),
            *(
                "--property=Type=notify",
                "--property=TimeoutStartSec=infinity",
                "--property=KillSignal=SIGINT",
            ),
            *("--property=Nice=10", "--property=IOSchedulingClass=idle", "--property=OOMScoreAdjust=500"),
            *("--property=MemoryMax=50%", f"--property=StandardError=truncate:{self.log}"),
            *("--property=KillMode=mixed", "--property=TimeoutStopSec=600", "--property=CPUWeight=20"),
            *(f"{binaries}/postgres", *words),
        ]
        try:
            answer(*command)
        except BackupError as error:
            raise BackupError(self.reason()) from error

    def reason(self) -> str:
        """Return the last fatal message."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        fatal = [line.partition("FATAL:")[2].strip() for line in lines if "FATAL:" in line]
        return fatal[0] if fatal else "; ".join(lines[-3:]) or "Postgres ended without a message"

    def wait_until_ended(self) -> None:
        """Wait until the server has shut itself down at the target; raise BackupError if it failed."""
        while self.running:
            time.sleep(POLL_SECONDS)
        if self.control("Database cluster state") != "shut down in recovery":
            raise BackupError(self.reason())

    def control(self, name: str) -> str:
        """Return an entry of the control file, as pg_controldata of the data's version names it."""
        version = (self.data / "PG_VERSION").read_text().strip()
        shown = as_postgres(f"/usr/lib/postgresql/{version}/bin/pg_controldata", "-D", self.data)
        return next(line for line in shown.splitlines() if line.startswith(name)).partition(":")[2].strip()

    def remove(self) -> None:
        """Stop the server and remove its data."""
        succeeds("systemctl", "stop", self.unit)
        succeeds("systemctl", "reset-failed", self.unit)
        for path in (self.data, self.socket):
            if path.exists():
                shutil.rmtree(path)
        self.log.unlink(missing_ok=True)


class Session:
    """A session with a database that lasts over several statements."""

    def __init__(self, cluster: Cluster, database: str = "postgres") -> None:
        self._psql = subprocess.Popen(
            [*account_words(), *cluster.psql(database)],
            env=cluster.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._psql.communicate("\\q\n")

    def run(self, sql: str) -> str:
        """Return the answer to a statement."""
        into, out = self._psql.stdin, self._psql.stdout
        if not into or not out:
            raise BackupError("psql has no pipes")
        into.write(f"{sql};\n\\echo {END}\n")
        into.flush()
        lines: list[str] = []
        for line in out:
            if line.rstrip("\n") == END:
                return "".join(lines).strip("\n")
            lines.append(line)
        raise BackupError(f"Postgres refused a statement: {''.join(lines).strip()}")


def free_bytes(path: Path) -> int:
    """Return the free space of a file system, without what it reserves for root."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def primary(settings: Mapping[str, Any]) -> Cluster:
    """Return the cluster that is backed up: this host's, or on a backup host that of its database host."""
    data, socket, unit = Path(settings["data"]), Path(settings["socket"]), str(settings["unit"])
    if database := settings["database"]:
        return Primary(data, socket, database["port"], unit, database["address"], settings["password"])
    return Cluster(data, socket, int(settings["port"]), unit)


def copy_of(settings: Mapping[str, Any], name: str, port: int) -> Copy:
    """Return the copy with a name; its data is beside the cluster's, on the same file system."""
    data = Path(settings["data"])
    return Copy(
        data.with_name(f"{data.name}.{name}"),
        Path(f"/run/postgresql/fastmetal-{name}"),
        port,
        f"fastmetal-postgres-{name}.service",
    )
