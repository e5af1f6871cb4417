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
from typing import Any, TypeAlias, TypeVar, cast

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
from app.settings import Settings

logger = logging.getLogger(__name__)

# A connection that was idle for longer is pinged before use; for others an open socket is enough.
PING_AFTER_SECONDS = 15
MAX_ATTEMPTS = 3
T = TypeVar("T")
Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_transaction: ContextVar["Driver | None"] = ContextVar("transaction", default=None)
# InternalClientError: asyncpg raises it between the server's last message and the closed socket.
CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    ConnectionError,
)
# Postgres rolled the transaction back in favour of another one.
ROLLED_BACK = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
UNAVAILABLE = (
    *CONNECTION_LOST,
    *ROLLED_BACK,
    asyncpg.OperatorInterventionError,  # statement timeout, or the server starts or stops
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    exc.TimeoutError,  # of the pool
    OSError,
)
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
    settings: Settings, *, owner: bool = False, pooled: bool = True, **limits: float
) -> AsyncEngine:
    """Return an engine for the serving role, or an unpooled one for the owner role, which migrates.

    `limits` are timeouts in seconds by their Postgres names, for the owner only; those of the serving role
    come from the settings.
    """
    given = make_url(settings.database_url)
    url = URL.create("postgresql+asyncpg", given.username, database=given.database)
    password, name = settings.database_password, f"api {settings.release}"[:63]
    pool: dict[str, Any] = {"poolclass": NullPool}
    if owner:
        url, password, name = url.set(username=settings.owner), settings.database_owner_password, "api manage"
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
        "password": password.get_secret_value() or None,
        "timeout": settings.database_connect_timeout / len(endpoints),
        # Ends a statement if the server is gone and cannot enforce its own timeout.
        "command_timeout": None if owner else settings.database_statement_timeout + 1,
        "server_settings": {"application_name": name, "jit": "off", **milliseconds},
        "ssl": ssl.create_default_context(cafile=ca) if (ca := settings.database_ssl_ca) else False,
        # Selects the primary among several endpoints.
        "target_session_attrs": "read-write",
        "async_creator_fn": partial(_connect, endpoints),
    }
    return create_async_engine(url, connect_args=arguments, **pool)


async def _connect(endpoints: list[tuple[str, int]], **arguments: Any) -> Driver:
    """Return a connection to the primary; the endpoint that was primary last is tried first.

    Each endpoint has its own timeout: with asyncpg's own list, a silent one would use up the others' time.
    """
    for host, port in [*endpoints]:
        try:
            driver: Driver = await asyncpg.connect(host=host, port=port, **arguments)
        except (*CONNECTION_LOST, asyncpg.CannotConnectNowError, OSError) as error:
            failure = error
        else:
            endpoints.remove((host, port))
            endpoints.insert(0, (host, port))
            return driver
    raise failure


class Database:
    """Database access for repositories: `session` (ORM) for rare statements, asyncpg for frequent ones."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.engine = create_engine(settings)
        self.aclose = self.engine.dispose
        self._metrics = metrics
        self._lost_at = 0.0
        self._slow_seconds = settings.database_slow_statement
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        # First come, first served: SQLAlchemy's pool lets newcomers overtake waiting requests.
        self._slots = asyncio.Semaphore(settings.database_pool_size + settings.database_max_overflow)
        self._pool_timeout = settings.database_pool_timeout
        self._sets_application_name = settings.debug or settings.log_level == "DEBUG"
        event.listen(self.engine.sync_engine, "checkout", self._on_checkout)
        event.listen(self.engine.sync_engine, "checkin", self._on_checkin)

    @asynccontextmanager
    async def session(self, name: str) -> AsyncIterator[AsyncSession]:
        """Run a unit of work: commits when the block ends, before the response; rolls back on an error."""
        with self._measured(name):
            async with self._sessions.begin() as session:
                yield session

    @asynccontextmanager
    async def connection(self, name: str) -> AsyncIterator[Driver]:
        """Yield the asyncpg connection of the surrounding transaction, or one from the pool."""
        with self._measured(name) as log_fields:
            if (current := _transaction.get()) is not None:
                log_fields["backend"] = current.get_server_pid()
                yield current
                return
            async with asyncio.timeout(self._pool_timeout if self._slots.locked() else None):
                await self._slots.acquire()
            try:
                pooled = await self.engine.raw_connection()
                try:
                    driver = cast("Driver", pooled.driver_connection)
                    log_fields["backend"] = driver.get_server_pid()
                    yield driver
                except asyncio.CancelledError:
                    pooled.invalidate()  # the server is still answering on it
                    raise
                except (*CONNECTION_LOST, TimeoutError):
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

        Retries after a deadlock or serialization failure, where Postgres rolled everything back. Never
        retries after a lost connection: the transaction may have committed.
        """
        attempt = 1
        while True:
            try:
                async with self.connection(name) as driver, driver.transaction():
                    token = _transaction.set(driver)
                    try:
                        return await work()
                    finally:
                        _transaction.reset(token)
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
            if isinstance(cause, (*CONNECTION_LOST, TimeoutError)):
                self._lost_at = time.monotonic()
            if isinstance(cause, CONSTRAINT_VIOLATED):
                raise ConflictError("The change violates a database constraint.") from cause
            raise UnavailableError(
                "The database is unavailable or did not answer in time. Retry the request."
            ) from cause
        finally:
            seconds = time.perf_counter() - started
            self._metrics.queries.labels(name).observe(seconds)
            if seconds >= self._slow_seconds:
                logger.warning("Slow statement", extra=log_fields | {"duration_ms": round(seconds * 1000, 3)})

    def _on_checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        """Replace a dead connection without a round trip: a server that stopped has closed the socket.

        Ping only if the connection was idle for long, or since before another connection was lost.
        """
        if connection.driver_connection.is_closed():
            raise exc.DisconnectionError
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
