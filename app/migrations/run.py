"""Plan and run migrations as the owner role, for `app.manage`.

Optional attributes of a script: `allow = {"drop"}` permits a statement that locks, rewrites or removes.
`reversible = False`, or `compatible = False` (the previous release cannot use the new schema), forbids a
rollback across it.
"""

import asyncio
import logging
import time
from io import StringIO

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, exc, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import create_engine
from app.migrations import head_revision, known_revisions
from app.settings import OperatorError, Settings

logger = logging.getLogger(__name__)

LOCK_KEY = 0x666D6D69  # "fmmi": one migration at a time in a database
MAX_ATTEMPTS = 10
LOCK_WAIT_SECONDS = 30.0
STATEMENT_TIMEOUT = 900  # seconds; an index over many millions of rows takes minutes


class MigrationError(OperatorError):
    """The migration was not applied; the message gives the reason."""


def alembic_config() -> Config:
    """Return Alembic's configuration; there is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", "app:migrations")
    config.set_main_option("path_separator", "os")
    return config


async def current_revision(settings: Settings) -> str | None:
    """Return the database's revision, or None for an empty database."""
    engine = create_engine(settings, owner=bool(settings.database_owner_password), pooled=False)
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


def plan(current: str | None) -> str:
    """Return the SQL from a revision to the head; comments after each script's header give its attributes."""
    config = alembic_config()
    config.output_buffer = StringIO()
    command.upgrade(config, f"{current or 'base'}:head", sql=True)
    scripts = ScriptDirectory.from_config(config)
    lines = []
    for line in config.output_buffer.getvalue().splitlines():
        lines.append(line)
        if line.startswith("-- Running upgrade "):
            module = scripts.get_revision(line.split()[-1]).module
            lines += [f"-- allow: {operation}" for operation in sorted(getattr(module, "allow", ()))]
            attributes = ("compatible", "reversible")
            lines += [f"-- not {name}" for name in attributes if not getattr(module, name, True)]
    return "\n".join(lines).rstrip()


async def migrate(settings: Settings, target: str = "head", lock_timeout: float = 0.5) -> None:
    """Upgrade or downgrade the database to the revision `target`; concurrent calls run one after another.

    A statement waits at most `lock_timeout` seconds for a table lock, because later readers and writers
    queue behind it. On a timeout the migration is retried with a growing backoff.
    """
    engine = create_engine(
        settings, owner=True, lock_timeout=lock_timeout, statement_timeout=STATEMENT_TIMEOUT
    )
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            async with engine.connect() as connection:
                await _lock(connection)
                await connection.run_sync(_migrate, target)
            return
        except CommandError as error:
            raise MigrationError(f"{error}.") from None
        except exc.DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":
                raise
            if attempt == MAX_ATTEMPTS:
                raise MigrationError("A long transaction holds the lock on a table.") from None
            logger.warning("Migration retries after a lock timeout", extra={"attempt": attempt})
            await asyncio.sleep(attempt * lock_timeout)


async def _lock(connection: AsyncConnection) -> None:
    """Poll for the advisory lock.

    A blocking wait would hold a snapshot, and CREATE INDEX CONCURRENTLY waits for older snapshots.
    """
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        taken = await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY})
        await connection.commit()
        if taken:
            return
        if time.monotonic() > deadline:
            raise MigrationError("Another migration holds the lock.")
        await asyncio.sleep(0.1)


def _migrate(connection: Connection, target: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    revision = head_revision() if target == "head" else target
    current = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    if current is not None and current not in known_revisions():
        raise MigrationError(f"The database is at revision {current}, which this release does not know.")
    if revision == "base" or (current is not None and revision < current):
        command.downgrade(config, revision)
    elif current != revision:
        _create_restore_point(connection, f"before {revision}")
        command.upgrade(config, revision)


def _create_restore_point(connection: Connection, name: str) -> None:
    """Create a named restore point in the WAL, if the role has the privilege."""
    may_create = "SELECT has_function_privilege('pg_create_restore_point(text)', 'EXECUTE')"
    if connection.scalar(text(may_create)):
        connection.execute(text("SELECT pg_create_restore_point(:name)"), {"name": name})
    connection.commit()
