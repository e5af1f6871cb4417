"""Postgres: one connection pool per worker, ORM sessions for rare statements, asyncpg for frequent ones."""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar, cast

import asyncpg
from fastapi import HTTPException
from sqlalchemy import URL, MetaData, event, exc, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import NullPool
from sqlalchemy.util import greenlet_spawn

from app.errors import ConflictError, UnavailableError
from app.logging import request_ids
from app.metrics import Metrics
from app.sessions import CONNECTION_LOST, Driver, Sessions, connect
from app.settings import Settings

logger = logging.getLogger(__name__)

# A connection that was idle for longer is pinged before use; for others an open socket is enough.
PING_AFTER_SECONDS = 15
# After a refused write, connections are replaced: an older session may be read-only when new ones are not.
REPLACE_AFTER_SECONDS = 5
# A database that is down fails every request: of one statement and error, one is logged in this time.
LOG_AFTER_SECONDS = 10
MAX_ATTEMPTS = 3
MAX_REASON_LENGTH = 300
T = TypeVar("T")
_transaction: ContextVar["Driver | None"] = ContextVar("transaction", default=None)
# Postgres undid the transaction: in favour of another one, or because a statement predates a schema change.
STALE_STATEMENT = asyncpg.InvalidCachedStatementError
ROLLED_BACK = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, STALE_STATEMENT)
# What clients read when the database cannot serve a request; the first class that fits.
REASONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (asyncpg.TooManyConnectionsError, "The database has too many connections."),
    (asyncpg.DiskFullError, "The database has no space left on its disk."),
    (asyncpg.InsufficientResourcesError, "The database is short of resources."),
    (asyncpg.PostgresSystemError, "The database has a system error."),
    (asyncpg.ReadOnlySQLTransactionError, "The database is read-only."),
    (asyncpg.CannotConnectNowError, "The database is starting or shutting down."),
    ((asyncpg.AdminShutdownError, asyncpg.CrashShutdownError), "The database is shutting down."),
    (asyncpg.LockNotAvailableError, "Another transaction holds a lock that the request needs."),
    (asyncpg.QueryCanceledError, "The database took too long."),
    (ROLLED_BACK, "The request collided with concurrent changes."),
    (asyncpg.TargetServerAttributeNotMatched, "The database has no primary."),
    (exc.TimeoutError, "All database connections are in use."),  # of the pool
    (TimeoutError, "The database does not answer in time."),
    (
        (
            ConnectionRefusedError,
            FileNotFoundError,
            asyncpg.InvalidAuthorizationSpecificationError,
            asyncpg.InvalidCatalogNameError,
        ),
        "The database refuses connections.",
    ),
    ((*CONNECTION_LOST, asyncpg.OperatorInterventionError), "The connection to the database was lost."),
    (OSError, "The database cannot be reached."),
)
UNAVAILABLE: Any = tuple(error for error, _ in REASONS)
CONSTRAINT_VIOLATED = (asyncpg.IntegrityConstraintViolationError,)


class Base(DeclarativeBase):
    """Base of the mapped classes; predictable constraint names let migrations drop them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def create_engine(
    settings: Settings,
    *,
    owner: bool = False,
    pooled: bool = True,
    sessions: Sessions | None = None,
    **limits: float,
) -> AsyncEngine:
    """Return an engine for the serving role, or an unpooled one for the owner role, which migrates.

    `sessions` opens the connections and limits their number. `limits` are timeouts in seconds by their
    Postgres names, for the owner only; those of the serving role come from the settings.
    """
    given = make_url(settings.database_url)
    url = URL.create("postgresql+asyncpg", given.username, database=given.database)
    passwords = [settings.database_password, settings.database_other_password]
    name = f"api {settings.release}"[:63]
    pool: dict[str, Any] = {"poolclass": NullPool}
    if owner:
        url, name = url.set(username=settings.owner), "api manage"
        passwords = [settings.database_owner_password]
    else:
        limits = {
            "statement_timeout": settings.database_statement_timeout,
            "lock_timeout": settings.database_lock_timeout,
            "idle_in_transaction_session_timeout": settings.database_idle_timeout,
        }
        if pooled:
            pool = {
                "pool_size": settings.database_pool_size,
                "max_overflow": settings.database_max_overflow,
                "pool_timeout": settings.database_pool_timeout,
                "pool_recycle": settings.database_pool_recycle,
                "pool_use_lifo": True,
            }
    milliseconds = {limit: str(int(seconds * 1000)) for limit, seconds in limits.items()}
    endpoints = settings.database_endpoints
    arguments = {
        "passwords": [password.get_secret_value() or None for password in passwords if password] or [None],
        "timeout": settings.database_connect_timeout / len(endpoints),
        # Ends a statement if the server is gone and cannot enforce its own timeout.
        "command_timeout": None if owner else settings.database_statement_timeout + 1,
        "server_settings": {"application_name": name, "jit": "off", **milliseconds},
        "ssl": ssl.create_default_context(cafile=ca) if (ca := settings.database_ssl_ca) else False,
        # Selects the primary among several endpoints; while it is read-only, reads are served.
        "target_session_attrs": "primary",
        "async_creator_fn": partial(sessions.open if sessions else connect, endpoints),
    }
    return create_async_engine(url, connect_args=arguments, **pool)


class Database:
    """Database access for repositories: `with_session` (ORM) for rare statements, asyncpg for frequent ones.

    Each unit of work is a function, so that it can be repeated if Postgres undid it.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, owner: bool = False) -> None:
        """Connect as the serving role, or as the owner role, which may write every table."""
        limit = settings.database_pool_size + settings.database_max_overflow
        self._pool_timeout = settings.database_pool_timeout
        self._sessions = Sessions(limit, self._pool_timeout)
        self.engine = create_engine(settings, owner=owner, sessions=self._sessions)
        self._orm_sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        # First come, first served: SQLAlchemy's pool lets newcomers overtake waiting requests.
        self._slots = asyncio.Semaphore(limit)
        self._metrics = metrics
        self._lost_at = self._read_only_at = 0.0
        self._replaces_connections = False
        self._schema_changes = 0
        self._logged: dict[tuple[str, type[BaseException]], tuple[float, int]] = {}
        self._slow_seconds = settings.database_slow_statement
        self._sets_application_name = settings.debug or settings.log_level == "DEBUG"
        event.listen(self.engine.sync_engine, "checkout", self._on_checkout)
        event.listen(self.engine.sync_engine, "checkin", self._on_checkin)

    async def aclose(self) -> None:
        """Close the idle connections, and wait for sessions that are ending."""
        await self.engine.dispose()
        await self._sessions.aclose()

    async def with_session(self, name: str, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Run a unit of work: commits when it returns, before the response; rolls back on an error.

        Repeats it as `transact` does.
        """

        async def run() -> T:
            with self._measured(name):
                async with self._orm_sessions.begin() as session:
                    return await work(session)

        return await self._repeat(run)

    @asynccontextmanager
    async def connection(self, name: str) -> AsyncIterator[Driver]:
        """Yield the asyncpg connection of the surrounding transaction, or one from the pool."""
        with self._measured(name) as log_fields:
            if (current := _transaction.get()) is not None:
                log_fields["backend"] = current.get_server_pid()
                yield current
                return
            try:
                async with asyncio.timeout(self._pool_timeout if self._slots.locked() else None):
                    await self._slots.acquire()
            except TimeoutError as error:
                raise exc.TimeoutError("The pool has no free connection.") from error
            try:
                pooled = await self.engine.raw_connection()
                try:
                    driver = cast("Driver", pooled.driver_connection)
                    log_fields["backend"] = driver.get_server_pid()
                    yield driver
                except (*CONNECTION_LOST, TimeoutError, asyncio.CancelledError):
                    pooled.invalidate()
                    raise
                finally:
                    # Not a plain call: an overflow connection is really closed, which awaits.
                    await greenlet_spawn(pooled.close)
            finally:
                self._slots.release()

    async def execute(self, name: str, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement once and return its rows; commits, unless inside `transact`.

        `name` labels metrics and log lines.
        """
        async with self.connection(name) as driver:
            return await driver.fetch(sql, *arguments)

    async def fetch(self, name: str, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one read, with a retry if its connection is lost, and return its rows."""
        return await self.retry_read(partial(self.execute, name, sql, *arguments))

    async def retry_read(self, read: Callable[[], Awaitable[T]]) -> T:
        """Run a read; if its connection is lost, retry once on another one, except inside `transact`."""
        try:
            return await read()
        except UnavailableError as error:
            if _transaction.get() is not None or not isinstance(error.__cause__, CONNECTION_LOST):
                raise
            return await read()

    async def transact(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` in one transaction, which every `fetch` and `execute` inside it joins.

        Repeats it if Postgres rolled everything back: after a deadlock, a serialization failure or a schema
        change. Never after a lost connection: the transaction may have committed.
        """

        async def run() -> T:
            async with self.connection(name) as driver, driver.transaction():
                token = _transaction.set(driver)
                try:
                    return await work()
                finally:
                    _transaction.reset(token)

        return await self._repeat(run)

    @staticmethod
    async def _repeat(run: Callable[[], Awaitable[T]]) -> T:
        attempt = 1
        while True:
            try:
                return await run()
            except UnavailableError as error:
                if attempt == MAX_ATTEMPTS or not isinstance(error.__cause__, ROLLED_BACK):
                    raise
            await asyncio.sleep(attempt * random.uniform(0.005, 0.02))  # noqa: S311
            attempt += 1

    @contextmanager
    def _measured(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a statement and translate database errors into HTTP errors.

        A slow statement is logged with the backend's process id, which finds it in the log of Postgres.
        """
        log_fields: dict[str, Any] = {"statement": name}
        started = time.perf_counter()
        try:
            yield log_fields
        except HTTPException:
            raise
        except Exception as error:
            cause: BaseException | None = error  # SQLAlchemy wraps the driver's errors twice
            while cause is not None and not isinstance(cause, (*UNAVAILABLE, *CONSTRAINT_VIOLATED)):
                cause = cause.__cause__
            if cause is None:
                raise
            self._metrics.query_errors.labels(name, type(cause).__name__).inc()
            if isinstance(cause, CONSTRAINT_VIOLATED):
                raise ConflictError("The change violates a database constraint.") from cause
            self._learn(cause)
            self._log(name, cause)
            reason = next(words for classes, words in REASONS if isinstance(cause, classes))
            raise UnavailableError(f"{reason} Retry the request.") from cause
        finally:
            seconds = time.perf_counter() - started
            self._metrics.queries.labels(name).observe(seconds)
            if seconds >= self._slow_seconds:
                logger.warning("Slow statement", extra=log_fields | {"duration_ms": round(seconds * 1000, 3)})

    def _learn(self, error: BaseException) -> None:
        """Remember what an error says about the other connections of the pool, for their next checkout."""
        now = time.monotonic()
        if isinstance(error, (*CONNECTION_LOST, TimeoutError)):
            self._lost_at = now
        elif isinstance(error, STALE_STATEMENT):
            self._schema_changes += 1
        elif (
            isinstance(error, asyncpg.ReadOnlySQLTransactionError)
            and now - self._read_only_at > REPLACE_AFTER_SECONDS
        ):
            self._read_only_at = now
            self._replaces_connections = True

    def _log(self, name: str, error: BaseException) -> None:
        """Log why a statement failed; `suppressed` counts those that were not logged since the last line."""
        now = time.monotonic()
        due_at, suppressed = self._logged.get((name, type(error)), (now, 0))
        if now < due_at:
            self._logged[name, type(error)] = due_at, suppressed + 1
            return
        self._logged[name, type(error)] = now + LOG_AFTER_SECONDS, 0
        log_fields = {
            "statement": name,
            "error": type(error).__name__,
            "sqlstate": getattr(error, "sqlstate", None),
            "reason": str(error)[:MAX_REASON_LENGTH],
            "suppressed": suppressed,
        }
        logger.warning("Statement failed", extra=log_fields)

    def _on_checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        """Replace a dead connection without a round trip: a server that stopped has closed the socket.

        Ping only if the connection was idle for long, or since before another connection was lost.
        """
        if self._replaces_connections:
            self._replaces_connections = False
            raise exc.InvalidatePoolError  # SQLAlchemy replaces this one, and each older one at its checkout
        if connection.driver_connection.is_closed():
            raise exc.DisconnectionError
        if record.info.setdefault("schema_changes", self._schema_changes) != self._schema_changes:
            record.info["schema_changes"] = self._schema_changes
            connection.run_async(lambda driver: driver.reload_schema_state())
        now = time.monotonic()
        idle_since = record.info.get("idle_since", now)
        try:
            if idle_since < self._lost_at or now - idle_since > PING_AFTER_SECONDS:
                connection.ping()
            if self._sets_application_name:
                name = " ".join(dict.fromkeys(request_ids.get().values())) or "api"
                connection.run_async(lambda driver: driver.execute(f"SET application_name = '{name}'"))
        except Exception as error:
            raise exc.DisconnectionError from error

    @staticmethod
    def _on_checkin(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    def sample_pool(self) -> dict[str, int]:
        """Record and return how many connections of this worker are used and idle."""
        pool: Any = self.engine.pool
        sample = {"used": pool.checkedout(), "idle": pool.checkedin()}
        for state, connections in sample.items():
            self._metrics.pool.labels(state).set(connections)
        return sample
