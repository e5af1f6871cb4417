"""Whatever gives up on a statement, the service never has more sessions in Postgres than its pools."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import create_engine
from app.settings import Settings
from tests.app.test_gunicorn import Server
from tests.app.test_interruptions import SLOW, open_database

URL = "/api/v1/products"
WORKERS, POOL_SIZE, OVERFLOW = 2, 2, 1
# The documented bound has twice as many: two instances overlap during a release.
MOST = WORKERS * (POOL_SIZE + OVERFLOW + 1)
# Nothing but a cancellation ends a statement that waits for the lock.
CHANGES = {
    "DATABASE_POOL_SIZE": str(POOL_SIZE),
    "DATABASE_MAX_OVERFLOW": str(OVERFLOW),
    "DATABASE_LOCK_TIMEOUT": "60",
    "DATABASE_STATEMENT_TIMEOUT": "60",
    "REQUEST_TIMEOUT": "1",
    "REDIS_URL": "",
}


class Sessions:
    """Counts the sessions of the service's role continuously; holds a lock on `products`."""

    def __init__(self, settings: Settings) -> None:
        self._engine = create_engine(settings, owner=True)
        self._role = make_url(settings.database_url).username
        self.now = self.most = 0

    async def watch(self) -> None:
        count = text("SELECT count(*) FROM pg_stat_activity WHERE usename = :role")
        async with self._engine.connect() as connection:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            while True:
                self.now = await connection.scalar(count, {"role": self._role}) or 0
                self.most = max(self.most, self.now)
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        async with self._engine.begin() as connection:
            await connection.execute(text("LOCK TABLE products"))
            yield

    async def ended(self) -> None:
        """Wait until the service has no session; a statement that goes on would take a minute."""
        deadline = time.monotonic() + 5
        while self.now:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


def worker_of(server: Server) -> int:
    """Return the process id of one worker."""
    pid = server.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.fixture
async def sessions(service: Callable[..., Settings]) -> AsyncIterator[Sessions]:
    sessions = Sessions(service())
    watch = asyncio.create_task(sessions.watch())
    yield sessions
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def test_sessions_stay_within_the_pools(
    sessions: Sessions,
    migrated: dict[str, str],
    writer: dict[str, str],
    category: str,
    tmp_path_factory: pytest.TempPathFactory,
    measured: list[str],
) -> None:
    server = Server(tmp_path_factory.mktemp("g"), migrated | CHANGES)
    transport = httpx.AsyncHTTPTransport(uds=str(server.path), limits=httpx.Limits(max_connections=None))
    product: dict[str, Any] = {"name": "n", "category": category, "price": "1"}

    async def leave(client: httpx.AsyncClient, seconds: float) -> None:
        """Send 60 requests a second from clients that give up after 0.3 s."""

        async def ask(number: int) -> None:
            with suppress(httpx.TransportError):
                if number % 3:
                    await client.get(f"{URL}/{number}", timeout=0.3)
                else:
                    await client.post(URL, json=product, headers=writer, timeout=0.3)

        async with asyncio.TaskGroup() as group:
            for number in range(int(60 * seconds)):
                group.create_task(ask(number))
                await asyncio.sleep(1 / 60)

    try:
        assert b"READY=1" in await asyncio.to_thread(server.notify.recv, 1000)
        async with httpx.AsyncClient(transport=transport, base_url="http://api", timeout=20) as client:
            address = (await client.post(URL, json=product, headers=writer)).headers["location"]
            async with sessions.locked():
                await leave(client, 3)
                assert sessions.most <= 2 * MOST
                os.kill(worker_of(server), signal.SIGKILL)
                await leave(client, 2)
            answers = [await client.get(address) for _ in range(5)]
            assert {answer.status_code for answer in answers} == {200}
            async with sessions.locked():
                # Writes complete although their clients have left: only a kill interrupts them.
                writes = (
                    client.patch(address, json={"stock": 1}, headers=writer, timeout=0.3) for _ in range(6)
                )
                await asyncio.gather(*writes, return_exceptions=True)
                await asyncio.to_thread(server.stop)
                await sessions.ended()
    finally:
        server.close()
    measured.append(f"at most {sessions.most} sessions of {2 * MOST} while clients gave up")
    assert sessions.most <= 2 * MOST  # a killed worker's sessions end within a quarter of a second


async def test_interrupted_logins_and_statements_are_counted(
    sessions: Sessions, service: Callable[..., Settings]
) -> None:
    async def sleep(session: AsyncSession) -> Any:
        return await session.execute(text(SLOW))

    async with open_database(service(DATABASE_POOL_SIZE="2")) as database:

        async def give_up_after(seconds: float, *, orm: bool) -> None:
            run = database.with_session("test", sleep) if orm else database.fetch("test", SLOW)
            statement = asyncio.ensure_future(run)
            await asyncio.sleep(seconds)
            statement.cancel()
            with suppress(asyncio.CancelledError):
                await statement

        for milliseconds in range(0, 60, 2):  # a login takes a few of them
            seconds = milliseconds / 1000
            await asyncio.gather(*(give_up_after(seconds, orm=orm) for orm in (True, False, False)))
        await asyncio.gather(*(database.fetch("test", "SELECT pg_sleep(0.1)") for _ in range(4)))
        assert database.sample_pool() == {"used": 0, "idle": 2}
    await sessions.ended()
    assert 0 < sessions.most <= 2
