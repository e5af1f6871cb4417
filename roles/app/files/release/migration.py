"""Migrate the database of a service with any migration command, and guard the release that still serves.

One migration runs at a time in a database. Its SQL is judged and kept before it runs. A statement that
waits for a lock gives up soon, as every client would queue behind it, and the command is repeated. A
migration that fails half-way is undone.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from database import Database
from files import write_atomically
from lint import annotate, faults, is_empty, revisions, start_of
from service import ReleaseError, Service

# As the server, asyncpg and psycopg report it. The included service's own retries have other words.
LOCK_TIMEOUT = re.compile(r"due to lock timeout|LockNotAvailable|\b55P03\b")
# The line of an exception or a tool's error, after which lines of context may follow.
ERROR_LINE = re.compile(r"^(?:[A-Za-z_][\w.]*|FAILED): \S.*$", re.MULTILINE)
MARK = "-- Plan of fastmetal\n"
MAX_PAUSE = 5.0
WATCH_SECONDS = 0.1


class MigrationError(ReleaseError):
    """A command of a migration failed; the message has its reason, `output` all it has printed."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


def reason_of(output: str) -> str:
    """Return the line of a command's output that says why it failed."""
    lines = output.strip().splitlines() or ["it printed nothing; `journalctl -n 20` may know more"]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    # SQLAlchemy prints the statement in a line of its own.
    statements = [f" {line[:200]}" for line in lines if errors and line.startswith("[SQL: ")]
    return (errors or lines)[-1].strip() + "".join(statements[-1:])


def alembic_words(command: list[str]) -> tuple[list[str], list[str]] | None:
    """Split an `alembic upgrade` into the words that start alembic and its arguments; None if it is none."""
    if command and Path(command[0]).name == "alembic":
        count = 1
    elif command[1:3] == ["-m", "alembic"]:
        count = 3
    else:
        return None
    return (command[:count], command[count:]) if "upgrade" in command else None


class Migration:
    """One migration of a service to the schema of a release."""

    def __init__(self, service: Service, release: str, options: dict[str, Any]) -> None:
        self.service = service
        self.home = service.srv / "releases" / release
        self.launcher = [f"/usr/local/sbin/{service.name}-run", "--owner", "--release", release]
        self.command = shlex.split(options["migrate"])
        self.plan_command = shlex.split(options["plan"])
        self.back_command = shlex.split(options["back"])
        self.revisions: dict[str, dict[str, Any]] = options["revisions"]
        self.seconds: float = options["wait"]
        self.alembic = None if self.plan_command else alembic_words(self.command)
        if self.alembic and not self.back_command:
            program, arguments = self.alembic
            self.back_command = [*program, *arguments[: arguments.index("upgrade")], "downgrade"]
        self.database: Database | None = None
        self.blocker = ""

    def run(self) -> dict[str, Any]:
        """Migrate the database, or leave it as it was."""
        with self.session() as self.database:
            plan = self.plan()
            if plan is not None and is_empty(plan):
                return {"changed": False}
            plan = annotate(plan or "", self.revisions)
            if wrong := faults(plan):
                raise ReleaseError(". ".join(wrong))
            if plan:
                write_atomically(self.home / "migration.sql", plan + "\n", 0o600)
            if self.database and self.database.create_restore_point(point := self.restore_point()):
                write_atomically(self.home / "restore-point", point)
            try:
                self.upgrade()
            except MigrationError as error:
                write_atomically(self.home / "migration.log", error.output, 0o600)
                raise ReleaseError(self.undo(error, plan)) from None
        warnings = [
            f"The SQL of the migration was not checked, as it has none beforehand: {reason}"
            for reason in re.findall(r"^-- No SQL: (.*)$", plan, re.MULTILINE)
        ]
        return {"changed": True, "revisions": [after for after, _ in revisions(plan)]} | (
            {"warnings": warnings} if warnings else {}
        )

    def restore_point(self) -> str:
        """Return the name of the moment before the migration; by its time restore.yml finds its backup."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", f"before-{self.service.name}-{self.home.name}")
        return f"{name[:46]}@{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"

    @contextlib.contextmanager
    def session(self) -> Iterator[Database | None]:
        """Hold the lock of migrations, if the database is known."""
        url = self.service.etc / "credentials/migration-database"
        if not url.exists():
            yield None
            return
        with Database(url) as database:
            database.check_timeouts()
            database.lock(self.seconds)
            yield database

    def plan(self) -> str | None:
        """Return the plan, a header and SQL for each revision; None if the command has none."""
        if self.alembic:
            words, arguments = self.alembic
            # As a console script, `alembic` does not import from the working directory.
            python = words[:1] if "-m" in words else ["python", "-P"]
            program = Path(__file__).with_name("alembic_plan.py").read_text()
            text = self.call([*python, "-", *arguments], program, f"The plan of `{shlex.join(self.command)}`")
            return text.partition(MARK)[2]
        return self.call(self.plan_command).strip() if self.plan_command else None

    def upgrade(self) -> None:
        """Run the command; repeat it while it gives up on a lock."""
        began = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                self.call(self.command)
            except MigrationError as error:
                if not LOCK_TIMEOUT.search(error.output):
                    raise
                pause = min(attempt / 2, MAX_PAUSE)
                if time.monotonic() + pause > began + self.seconds:
                    raise self.gave_up(error, attempt, time.monotonic() - began) from None
                time.sleep(pause)
            else:
                return

    def gave_up(self, error: MigrationError, attempts: int, seconds: float) -> MigrationError:
        """Return the error of a migration that waited too long for a lock."""
        holder = self.blocker[:1].upper() + self.blocker[1:] or "A long transaction"
        reason = f"The migration waited {seconds:.0f} s for a lock, in {attempts} attempts"
        advice = "end that transaction, or deploy when it has ended"
        return MigrationError(f"{reason}. {holder} holds it: {advice}", error.output)

    def undo(self, error: MigrationError, before: str) -> str:
        """Go back to the revision before a failed migration; return the sentences of the failure."""
        start = start_of(before)
        if not revisions(before) or not self.back_command or "," in start:
            return f"{error}. Look at the database: it may have a part of the migration"
        try:
            if revisions(self.plan() or "") != revisions(before):
                self.call([*self.back_command, start])
        except ReleaseError as second:
            return f"{error}. Going back to {start} failed too: {second}"
        (self.home / "migration.sql").unlink()
        return f"{error}. The database is at revision {start}, as before"

    def call(self, command: list[str], stdin: str = "", name: str = "") -> str:
        """Run a command as the role that migrates; return its output or raise MigrationError."""
        name = name or f"`{shlex.join(command)}`"
        # A pipe of its own keeps the terminal of a person who runs SERVICE-release out of the migration.
        with subprocess.Popen(
            [*self.launcher, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            rest: str | None = stdin
            while True:
                try:
                    out, errors = process.communicate(rest, timeout=WATCH_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    rest = None
                    self.watch()
        if process.returncode:
            raise MigrationError(f"{name} failed: {reason_of(out + errors)}", out + errors)
        return out

    def watch(self) -> None:
        """Note the sessions that the migration waits for at this moment."""
        if self.database and (found := self.database.blockers()):
            self.blocker = found
