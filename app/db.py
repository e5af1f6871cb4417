"""Postgres: one pool for each worker, sessions for cold code, the driver itself for hot statements."""

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

# A connection that sat idle this long is asked before use; younger ones only need to be still open.
PING_AFTER_SECONDS = 15
ATTEMPTS = 3
T = TypeVar("T")
Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_transaction: ContextVar["Driver | None"] = ContextVar("transaction", default=None)
# What a lost connection looks like; InternalClientError is asyncpg in the instant between the server's
# farewell and the closed socket.
LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    ConnectionError,
)
# Postgres rolled the transaction back itself.
UNDONE = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
NOT_NOW = (
    *LOST,
    *UNDONE,
    asyncpg.OperatorInterventionError,  # cut at its timeout, or the server starts or stops
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    exc.TimeoutError,  # the pool's
    OSError,
)
CONTRADICTED = (asyncpg.IntegrityConstraintViolationError,)


class Base(DeclarativeBase):
    """Base of the mapped classes; constraint names are predictable so that migrations can drop them."""

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
    """Return the engine of the serving role, or an unpooled one: of the role that migrates, if `owner`.

    Limits are the owner's timeouts by their Postgres names, in seconds; the serving role's are settings.
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
        # For when nobody is there any more to keep to the server's own.
        "command_timeout": None if owner else settings.database_statement_timeout + 1,
        "server_settings": {"application_name": name, "jit": "off", **milliseconds},
        "ssl": ssl.create_default_context(cafile=ca) if (ca := settings.database_ssl_ca) else False,
        # Of several endpoints, the one that accepts writes.
        "target_session_attrs": "read-write",
        "async_creator_fn": partial(_connect, endpoints),
    }
    return create_async_engine(url, connect_args=arguments, **pool)


async def _connect(endpoints: list[tuple[str, int]], **arguments: Any) -> Driver:
    """Return a connection to the endpoint that accepts writes; the one that did last is asked first.

    The driver would let one that does not answer use up the time of the others.
    """
    for host, port in [*endpoints]:
        try:
            driver: Driver = await asyncpg.connect(host=host, port=port, **arguments)
        except (*LOST, asyncpg.CannotConnectNowError, OSError) as error:
            failure = error
        else:
            endpoints.remove((host, port))
            endpoints.insert(0, (host, port))
            return driver
    raise failure


class Database:
    """What the repositories use: `session` for cold code, the others at driver speed for hot code."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.engine = create_engine(settings)
        self.aclose = self.engine.dispose
        self._metrics = metrics
        self._lost_at = 0.0
        self._slow_seconds = settings.database_slow_statement
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        # The pool would let newcomers overtake those that wait.
        self._places = asyncio.Semaphore(settings.database_pool_size + settings.database_max_overflow)
        self._patience = settings.database_pool_timeout
        self._names_requests = settings.debug or settings.log_level == "DEBUG"
        event.listen(self.engine.sync_engine, "checkout", self._on_checkout)
        event.listen(self.engine.sync_engine, "checkin", self._on_checkin)

    @asynccontextmanager
    async def session(self, name: str) -> AsyncIterator[AsyncSession]:
        """One unit of work: committed when the block ends, before any answer; rolled back on an error."""
        with self._accounted(name):
            async with self._sessions.begin() as session:
                yield session

    @asynccontextmanager
    async def connection(self, name: str) -> AsyncIterator[Driver]:
        """The driver's connection of the transaction around this call, or else one from the pool."""
        with self._accounted(name) as known:
            if (joined := _transaction.get()) is not None:
                known["backend"] = joined.get_server_pid()
                yield joined
                return
            async with asyncio.timeout(self._patience if self._places.locked() else None):
                await self._places.acquire()
            try:
                pooled = await self.engine.raw_connection()
                try:
                    driver = cast("Driver", pooled.driver_connection)
                    known["backend"] = driver.get_server_pid()
                    yield driver
                except asyncio.CancelledError:
                    pooled.invalidate()  # it is still being answered
                    raise
                except (*LOST, TimeoutError):
                    pooled.invalidate()
                    raise
                finally:
                    await greenlet_spawn(pooled.close)  # one of the overflow is really closed, which waits
            finally:
                self._places.release()

    async def write(self, name: str, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement, committed when this returns unless in `transact`. Never repeated."""
        async with self.connection(name) as driver:
            return await driver.fetch(sql, *arguments)

    async def fetch(self, name: str, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run a read at driver speed."""
        return await self.repeat(partial(self.write, name, sql, *arguments))

    async def repeat(self, read: Callable[[], Awaitable[T]]) -> T:
        """Run a read; where its connection is lost once more, over another one, since a read may repeat."""
        try:
            return await read()
        except UnavailableError as error:
            if _transaction.get() is not None or not isinstance(error.__cause__, LOST):
                raise
            return await read()

    async def transact(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run work in one transaction, which every `fetch` and `write` inside it joins.

        It is run again where Postgres undid it in favour of another transaction: then nothing was done.
        A connection that is lost on the way may or may not have committed: that is never repeated.
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
                if attempt == ATTEMPTS or not isinstance(error.__cause__, UNDONE):
                    raise
            await asyncio.sleep(attempt * random.uniform(0.005, 0.02))  # noqa: S311
            attempt += 1

    @contextmanager
    def _accounted(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a statement and turn what the database may answer into errors a client understands.

        A slow one is logged; with the process that ran it, it is found in Postgres' own log too.
        """
        known: dict[str, Any] = {"statement": name}
        started = time.perf_counter()
        try:
            yield known
        except HTTPException:
            raise
        except Exception as error:
            cause: BaseException | None = error  # SQLAlchemy wraps the driver's errors, twice
            while cause is not None and not isinstance(cause, (*NOT_NOW, *CONTRADICTED)):
                cause = cause.__cause__
            if cause is None:
                raise
            self._metrics.query_errors.labels(name, type(cause).__name__).inc()
            if isinstance(cause, (*LOST, TimeoutError)):
                self._lost_at = time.monotonic()
            if isinstance(cause, CONTRADICTED):
                raise ConflictError("The change contradicts what is stored.") from cause
            raise UnavailableError("The database does not answer in time; try again.") from cause
        finally:
            seconds = time.perf_counter() - started
            self._metrics.queries.labels(name).observe(seconds)
            if seconds >= self._slow_seconds:
                logger.warning("Slow statement", extra=known | {"duration_ms": round(seconds * 1000, 3)})

    def _on_checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        """Pre-ping without its round trip: a server that went away closed the socket, which is free to see.

        A connection is asked only if it sat idle for long, or since before another one was lost.
        """
        if connection.driver_connection.is_closed():
            raise exc.DisconnectionError
        now = time.monotonic()
        idle_since = record.info.get("idle_since", now)
        try:
            if idle_since < self._lost_at or now - idle_since > PING_AFTER_SECONDS:
                connection.ping()
            if self._names_requests:
                name = " ".join(dict.fromkeys(request_ids.get().values())) or "api"
                connection.run_async(lambda driver: driver.execute(f"SET application_name = '{name}'"))
        except Exception as error:
            raise exc.DisconnectionError from error

    @staticmethod
    def _on_checkin(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    def sample_pool(self) -> dict[str, int]:
        """Record and return how many connections this worker holds and uses."""
        pool: Any = self.engine.pool
        sample = {"used": pool.checkedout(), "idle": pool.checkedin()}
        for state, connections in sample.items():
            self._metrics.pool.labels(state).set(connections)
        return sample
