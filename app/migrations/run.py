"""Plans and runs the migrations, as the owner role, for `app.manage`.

A script says more about itself where needed: `allow = {"drop"}` vouches for a statement that locks, rewrites
or removes; `reversible = False` and `compatible = False` (the code before it cannot work with the schema
after it) close the way back to earlier releases.
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
ATTEMPTS = 10
TURN_SECONDS = 30.0
STATEMENT_TIMEOUT = 900  # an index over many millions of rows takes its minutes


class MigrationError(OperatorError):
    """The migration did not happen; the message says why."""


def alembic_config() -> Config:
    """Return Alembic's configuration; there is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", "app:migrations")
    config.set_main_option("path_separator", "os")
    return config


async def current_revision(settings: Settings) -> str | None:
    """Return the database's revision."""
    engine = create_engine(settings, owner=bool(settings.database_owner_password), pooled=False)
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


def plan(current: str | None) -> str:
    """Return the SQL from a revision to this release's, after each script's head what it says of itself."""
    config = alembic_config()
    config.output_buffer = StringIO()
    command.upgrade(config, f"{current or 'base'}:head", sql=True)
    scripts = ScriptDirectory.from_config(config)
    lines = []
    for line in config.output_buffer.getvalue().splitlines():
        lines.append(line)
        if line.startswith("-- Running upgrade "):
            module = scripts.get_revision(line.split()[-1]).module
            lines += [f"-- allow: {word}" for word in sorted(getattr(module, "allow", ()))]
            claims = ("compatible", "reversible")
            lines += [f"-- not {word}" for word in claims if not getattr(module, word, True)]
    return "\n".join(lines).rstrip()


async def migrate(settings: Settings, target: str = "head", lock_timeout: float = 0.5) -> None:
    """Bring the database to `target`, forward or back, one process at a time.

    No statement waits for a lock longer than `lock_timeout` seconds: every later reader and writer of the
    table queues behind it. A migration that lost this race is tried again, with growing pauses.
    """
    engine = create_engine(
        settings, owner=True, lock_timeout=lock_timeout, statement_timeout=STATEMENT_TIMEOUT
    )
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with engine.connect() as connection:
                await _take_turn(connection)
                await connection.run_sync(_run, target)
            return
        except CommandError as error:
            raise MigrationError(f"{error}.") from None
        except exc.DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":
                raise
            if attempt == ATTEMPTS:
                raise MigrationError("A long transaction holds the lock on a table.") from None
            logger.warning("Migration waits for a lock", extra={"attempt": attempt})
            await asyncio.sleep(attempt * lock_timeout)


async def _take_turn(connection: AsyncConnection) -> None:
    """Wait for the lock without a snapshot: CREATE INDEX CONCURRENTLY waits for those who have one."""
    deadline = time.monotonic() + TURN_SECONDS
    while True:
        taken = await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY})
        await connection.commit()
        if taken:
            return
        if time.monotonic() > deadline:
            raise MigrationError("Another migration holds the lock.")
        await asyncio.sleep(0.1)


def _run(connection: Connection, target: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    wanted = head_revision() if target == "head" else target
    current = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    if current is not None and current not in known_revisions():
        raise MigrationError(f"The database is at revision {current}, which this release does not know.")
    if wanted == "base" or (current is not None and wanted < current):
        command.downgrade(config, wanted)
    elif current != wanted:
        _name_this_moment(connection, f"before {wanted}")
        command.upgrade(config, wanted)


def _name_this_moment(connection: Connection, name: str) -> None:
    """Leave a name in the log that a restore can stop at, where the role may."""
    may = "SELECT has_function_privilege('pg_create_restore_point(text)', 'EXECUTE')"
    if connection.scalar(text(may)):
        connection.execute(text("SELECT pg_create_restore_point(:name)"), {"name": name})
    connection.commit()
