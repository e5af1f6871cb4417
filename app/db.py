"""Postgres: one pool for each worker, sessions for units of work, driver speed for the hot statements."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeVar, cast

import asyncpg
from sqlalchemy import URL, MetaData, event, exc, make_url
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.expression import Executable

from app.errors import ConflictError, UnavailableError
from app.metrics import Metrics
from app.settings import Settings, verifying_context

# A connection that sat idle this long is asked before use; younger ones only need to be still open.
PING_AFTER_SECONDS = 15
ATTEMPTS = 3
T = TypeVar("T")
Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_transaction: ContextVar["Driver | None"] = ContextVar("transaction", default=None)
_DIALECT: Any = cast("Any", asyncpg_dialect)()
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
UNAVAILABLE = (
    *LOST,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    *UNDONE,
    exc.TimeoutError,
    exc.OperationalError,
    exc.InterfaceError,
    OSError,
    TimeoutError,
)


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


class Statement:
    """A SQLAlchemy statement compiled once to the driver's SQL: nothing is built for a request.

    Written with the mapped classes, so a renamed column fails here and not in production.
    """

    def __init__(self, name: str, statement: Executable) -> None:
        compiled = cast("Any", statement).compile(dialect=_DIALECT)
        self.name = name
        self.sql = str(compiled)
        self._names: list[str] = compiled.positiontup
        self._constants: dict[str, Any] = compiled.params

    def arguments(self, values: dict[str, Any]) -> list[Any]:
        """Return the values in the order of the placeholders."""
        return [values[name] if name in values else self._constants[name] for name in self._names]


def create_engine(settings: Settings, *, owner: bool = False, pooled: bool = True) -> AsyncEngine:
    """Return the engine of the serving role, or an unpooled one: of the role that migrates, if `owner`."""
    url: URL = make_url(settings.database_url)
    password = settings.database_password
    server_settings = {"application_name": f"api {settings.release}"[:63], "jit": "off"}
    if owner:
        url, password = url.set(username=settings.owner), settings.database_owner_password
        server_settings["application_name"] = "api manage"
    else:
        server_settings |= {
            "statement_timeout": str(int(settings.database_statement_timeout * 1000)),
            "lock_timeout": str(int(settings.database_lock_timeout * 1000)),
            "idle_in_transaction_session_timeout": str(int(settings.database_idle_timeout * 1000)),
        }
    arguments: dict[str, Any] = {
        "timeout": settings.database_connect_timeout,
        "server_settings": server_settings,
        # Of several endpoints, the one that accepts writes.
        "target_session_attrs": "read-write",
        "ssl": verifying_context(settings.database_ssl_ca) if settings.database_ssl_ca else False,
    }
    if password is not None:
        arguments["password"] = password.get_secret_value()
    if owner or not pooled:
        return create_async_engine(url, poolclass=NullPool, connect_args=arguments)
    return create_async_engine(
        url,
        pool_size=settings.database_pool_size,
        max_overflow=settings.database_max_overflow,
        pool_timeout=settings.database_pool_timeout,
        pool_recycle=settings.database_pool_recycle,
        pool_use_lifo=True,
        connect_args=arguments,
    )


class Database:
    """What the repositories use: `session` for cold code, the others at driver speed for hot code."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.engine = create_engine(settings)
        self._metrics = metrics
        self._lost_at = 0.0
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        event.listen(self.engine.sync_engine, "checkout", self._refuse_dead)
        event.listen(self.engine.sync_engine, "checkin", _note_idle_since)

    @asynccontextmanager
    async def session(self, name: str) -> AsyncIterator[AsyncSession]:
        """One unit of work: committed when the block ends, before any answer; rolled back on an error."""
        with self._accounted(name):
            async with self._sessions() as session, session.begin():
                yield session

    async def transact(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run work in one transaction, which every `fetch` and `write` inside it joins; for hot code.

        It is run again where Postgres undid it in favour of another transaction: then nothing was done.
        A connection that is lost on the way may or may not have committed: that is never repeated.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._accounted(name):
                    async with self._driver() as driver, driver.transaction():
                        token = _transaction.set(driver)
                        try:
                            return await work()
                        finally:
                            _transaction.reset(token)
            except UnavailableError as error:
                if attempt == ATTEMPTS or not isinstance(error.__cause__, UNDONE):
                    raise
                await asyncio.sleep(attempt * random.uniform(0.005, 0.02))  # noqa: S311
        raise AssertionError  # pragma: no cover

    async def fetch(self, statement: Statement, **values: Any) -> list[asyncpg.Record]:
        """Run a read on a driver connection; a lost connection is replaced once, since a read may repeat."""
        with self._accounted(statement.name):
            try:
                return await self._fetch(statement, values)
            except LOST:
                if _transaction.get() is not None:
                    raise
                return await self._fetch(statement, values)

    async def write(self, statement: Statement, **values: Any) -> list[asyncpg.Record]:
        """Run one writing statement, committed when this returns unless in `transact`. Never repeated."""
        with self._accounted(statement.name):
            return await self._fetch(statement, values)

    async def _fetch(self, statement: Statement, values: dict[str, Any]) -> list[asyncpg.Record]:
        async with self._driver() as driver:
            return await driver.fetch(statement.sql, *statement.arguments(values))

    @asynccontextmanager
    async def _driver(self) -> AsyncIterator[Driver]:
        """The driver's connection under a pooled one, or that of the transaction around this call."""
        if (joined := _transaction.get()) is not None:
            yield joined
            return
        async with self.engine.connect() as connection:
            raw = await connection.get_raw_connection()
            try:
                yield cast("Driver", raw.driver_connection)
            except LOST:
                self._lost_at = time.monotonic()
                await connection.invalidate()
                raise

    @contextmanager
    def _accounted(self, name: str) -> Iterator[None]:
        """Time a statement and turn what the database may answer into errors a client understands."""
        started = time.perf_counter()
        try:
            yield
        except (asyncpg.IntegrityConstraintViolationError, exc.IntegrityError) as error:
            self._metrics.query_errors.labels(name, type(error).__name__).inc()
            raise ConflictError("The change contradicts what is stored.") from error
        except (*UNAVAILABLE, exc.DBAPIError) as error:
            cause = getattr(error, "orig", None) or error
            self._metrics.query_errors.labels(name, type(cause).__name__).inc()
            if isinstance(error, UNAVAILABLE) or _is_unavailable(error):
                raise UnavailableError("The database does not answer in time; try again.") from error
            raise
        finally:
            self._metrics.queries.labels(name).observe(time.perf_counter() - started)

    def _refuse_dead(self, connection: Any, record: Any, _proxy: Any) -> None:
        """Pre-ping without its round trip: a server that went away closed the socket, which is free to see.

        A connection is asked only if it sat idle for long, or since before another one was lost.
        """
        if connection.driver_connection.is_closed():
            raise exc.DisconnectionError
        now = time.monotonic()
        idle_since = record.info.get("idle_since", now)
        if idle_since < self._lost_at or now - idle_since > PING_AFTER_SECONDS:
            try:
                connection.ping()
            except Exception as error:
                raise exc.DisconnectionError from error

    async def on_driver(self, name: str, work: Callable[[Driver], Awaitable[T]]) -> T:
        """Run read-only work on a driver connection of the pool."""
        with self._accounted(name):
            async with self._driver() as driver:
                return await work(driver)

    def sample_pool(self) -> dict[str, int]:
        """Record and return how many connections this worker holds and uses."""
        pool = cast("Any", self.engine.pool)
        sample = {"used": pool.checkedout(), "idle": pool.checkedin()}
        for state, connections in sample.items():
            self._metrics.pool.labels(state).set(connections)
        return sample

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


def _is_unavailable(error: BaseException) -> bool:
    """Whether SQLAlchemy wrapped an error that means "not now"."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UNAVAILABLE):
            return True
        seen = seen.__cause__
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def _note_idle_since(_connection: Any, record: Any) -> None:
    record.info["idle_since"] = time.monotonic()
