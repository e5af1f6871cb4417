"""Sessions of one connection pool in Postgres: opened, limited in number, and ended with their statements."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import asyncpg

T = TypeVar("T")
Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
# InternalClientError: asyncpg raises it between the server's last message and the closed socket.
CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    ConnectionError,
)
if TYPE_CHECKING:
    AsyncpgConnection = asyncpg.Connection[asyncpg.Record]
else:
    AsyncpgConnection = asyncpg.Connection


async def connect(endpoints: list[tuple[str, int]], **arguments: Any) -> Driver:
    """Return a connection to the primary; the endpoint that was primary last is tried first.

    Each endpoint has its own timeout: with asyncpg's own list, a silent one would use up the others' time.
    """
    for host, port in [*endpoints]:
        try:
            driver = await _log_in(host=host, port=port, **arguments)
        except (*CONNECTION_LOST, asyncpg.CannotConnectNowError, OSError) as error:
            failure = error
        else:
            endpoints.remove((host, port))
            endpoints.insert(0, (host, port))
            return driver
    raise failure


async def _log_in(passwords: list[str | None], **arguments: Any) -> Driver:
    """Return a connection with the first password that the server accepts; the next login tries it first."""
    for password in [*passwords]:
        try:
            driver: Driver = await asyncpg.connect(password=password, **arguments)
        except asyncpg.InvalidPasswordError as error:
            refused = error
        else:
            passwords.remove(password)
            passwords.insert(0, password)
            return driver
    raise refused


class Connection(AsyncpgConnection):
    """A connection that ends its session in Postgres, and the statement that runs in it.

    asyncpg's own `terminate` only closes the socket: Postgres completes the statement first.
    """

    sessions: "Sessions | None" = None
    command_timeout: float | None = None
    _end: asyncio.Task[None] | None = None

    def terminate(self) -> None:
        """End the session in the background."""
        if self._ending() is None:
            super().terminate()

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  (asyncpg's)
        """End the session; after `timeout` seconds it goes on ending in the background."""
        if (ending := self._ending()) is None:
            await super().close(timeout=timeout)
        else:
            async with asyncio.timeout(timeout):
                await asyncio.shield(ending)

    def _ending(self) -> asyncio.Task[None] | None:
        """Return the task that ends the session, or None if it has ended or is not one of a pool."""
        if self._end is None and self.sessions is not None and not self.is_closed():
            self._end = self.sessions.keep(self._end_session())
        return self._end

    async def _end_session(self) -> None:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            # Cancels the statement and waits. A server that does not answer has ended it by its own timeout.
            await super().close(timeout=self.command_timeout)


class Sessions:
    """The sessions of one pool in Postgres: at most `limit`, each counted until Postgres has ended it.

    A pool counts connections, and forgets one whose statement was given up at once.
    """

    def __init__(self, limit: int, timeout: float) -> None:
        self._free = asyncio.Semaphore(limit)
        self._timeout = timeout
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self, endpoints: list[tuple[str, int]], **arguments: Any) -> Driver:
        """Return a connection as `connect` does, once the number of sessions permits it."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._free.acquire()
        except TimeoutError:
            raise TimeoutError("Postgres has not ended earlier sessions.") from None
        opening = self.keep(self._open(endpoints, arguments))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # An interrupted login may become a session all the same: complete it, then end it.
            opening.add_done_callback(_end_unused)
            raise

    async def _open(self, endpoints: list[tuple[str, int]], arguments: dict[str, Any]) -> Driver:
        try:
            driver = cast("Connection", await connect(endpoints, connection_class=Connection, **arguments))
        except BaseException:
            self._free.release()
            raise
        driver.sessions, driver.command_timeout = self, arguments["command_timeout"]
        if driver.is_closed():
            self._free.release()
        else:
            driver.add_termination_listener(lambda _: self._free.release())
        return driver

    def keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in a task that `aclose` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Wait for the sessions that are ending."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def _end_unused(opening: asyncio.Task[Driver]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().terminate()
