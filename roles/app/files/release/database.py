"""The session with a service's database in which SERVICE-release guards a migration."""

from __future__ import annotations

import contextlib
import importlib
import time
from pathlib import Path
from typing import Any

from service import ReleaseError

LOCK_KEY = 0x666173746D657461  # "fastmeta": one migration at a time in a database

BLOCKERS = """
SELECT blocker.pid, blocker.usename, blocker.application_name
FROM pg_stat_activity AS waiting, unnest(pg_blocking_pids(waiting.pid)) AS blocked_by
JOIN pg_stat_activity AS blocker ON blocker.pid = blocked_by
WHERE waiting.usename = session_user AND blocker.usename <> session_user
"""
HOLDER = """
SELECT pid, usename, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (classid::bigint << 32) + objid::bigint = %s
"""


class Database:
    """A session as the role that migrates. Its advisory lock ends with it."""

    def __init__(self, url_file: Path) -> None:
        try:
            psycopg2 = importlib.import_module("psycopg2")
        except ImportError:
            raise ReleaseError("python3-psycopg2 is not on this host: run site.yml first") from None
        self.error = psycopg2.Error
        options = {"connect_timeout": 10, "target_session_attrs": "read-write"}
        try:
            self.connection = psycopg2.connect(url_file.read_text(), application_name="migration", **options)
        except psycopg2.Error as error:
            reason = " ".join(str(error).split())
            raise ReleaseError(
                f"The database cannot be reached as the role that migrates: {reason}"
            ) from None
        # Outside of transactions it holds no snapshot, for which CREATE INDEX CONCURRENTLY would wait.
        self.connection.autocommit = True

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(self.error):
            self.connection.close()

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    def check_timeouts(self) -> None:
        """Refuse a role that waits for a lock without an end: every client would queue behind it."""
        for name, value in (("lock_timeout", "500ms"), ("statement_timeout", "15min")):
            ((setting, role),) = self.rows("SELECT current_setting(%s), session_user", name)
            if setting == "0":
                raise ReleaseError(
                    f"The role {role}, which migrates, has no {name}: run site.yml, or on a server of yours"
                    f" `ALTER ROLE {role} SET {name} = '{value}'`"
                )

    def lock(self, seconds: float) -> None:
        """Take the lock of migrations, or fail after this time."""
        deadline = time.monotonic() + seconds
        while not self.rows("SELECT pg_try_advisory_lock(%s)", LOCK_KEY)[0][0]:
            if time.monotonic() > deadline:
                holder = sessions(self.rows(HOLDER, LOCK_KEY)) or "another session"
                raise ReleaseError(f"Another migration of this database runs since {seconds:.0f} s: {holder}")
            time.sleep(0.2)

    def create_restore_point(self, name: str) -> bool:
        """Create a named restore point in the WAL, if the server allows it; return whether it did."""
        with contextlib.suppress(self.error):
            self.rows("SELECT pg_create_restore_point(%s)", name)
            return True
        return False

    def blockers(self) -> str:
        """Return the sessions that the migration waits for now."""
        with contextlib.suppress(self.error):
            return sessions(self.rows(BLOCKERS))
        return ""


def sessions(rows: list[tuple[Any, ...]]) -> str:
    """Return text that names sessions by pid, role and application."""
    texts = [f"session {pid} of {role}" + (f" ({name})" if name else "") for pid, role, name in rows]
    return " and ".join(dict.fromkeys(texts))
