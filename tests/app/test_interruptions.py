"""Interrupted writes leave no stale cache entry, and interrupted connections are not reused."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import text

from app.db import Database
from app.errors import UnavailableError
from app.idempotency import LOAD, Idempotency, Outcome
from app.lifespan import _repeat
from app.main import create_app
from app.metrics import Metrics
from app.products.schemas import ProductInput
from app.settings import Settings
from tests.app.conftest import Proxy, proxied, running

URL = "/api/v1/products"
READ, SLOW = "SELECT stock FROM products WHERE id = $1", "SELECT pg_sleep(3)"


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    async with aclosing(Database(settings, Metrics("test"))) as database:
        yield database


@pytest.fixture
async def postgres_proxy(service_environment: dict[str, str]) -> AsyncIterator[Proxy]:
    """Yield a proxy to the real Postgres."""
    target = urlsplit(service_environment["DATABASE_URL"])

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(target.hostname, target.port)

    async with proxied(Proxy(connect)) as proxy:
        yield proxy


@pytest.fixture
async def product(client: httpx.AsyncClient, writer: dict[str, str], category: str) -> str:
    """Return the path of a cached product."""
    body = {"name": "n", "category": category, "price": "1", "stock": 1}
    address: str = (await client.post(URL, json=body, headers=writer)).headers["location"]
    assert (await client.get(address)).json()["stock"] == 1
    return address


async def test_a_write_with_unknown_outcome_invalidates_the_cache(
    client: httpx.AsyncClient, writer: dict[str, str], product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = client.app.state.products._repository  # type: ignore[attr-defined]
    update = repository.update

    async def lost(*arguments: Any) -> bytes:
        await update(*arguments)
        raise UnavailableError("The connection was lost on the way back.")

    monkeypatch.setattr(repository, "update", lost)
    assert (await client.patch(product, json={"stock": 2}, headers=writer)).status_code == 503
    assert (await client.get(product)).json()["stock"] == 2


async def test_a_write_completes_after_its_client_disconnects(
    client: httpx.AsyncClient, writer: dict[str, str], product: str
) -> None:
    database: Database = client.app.state.database  # type: ignore[attr-defined]
    number = int(product.rpartition("/")[2])
    async with database.engine.begin() as other:
        await other.execute(text("SELECT 1 FROM products WHERE id = :id FOR UPDATE"), {"id": number})
        request = asyncio.ensure_future(client.patch(product, json={"stock": 2}, headers=writer))
        await asyncio.sleep(0.2)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert (await client.get(product)).json()["stock"] == 1
    deadline = time.monotonic() + 5
    while (await database.fetch("test", READ, number))[0]["stock"] != 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert (await client.get(product)).json()["stock"] == 2


async def test_a_worker_stops_after_writes_of_disconnected_clients(
    client: httpx.AsyncClient, service: Callable[..., Settings], writer: dict[str, str], product: str
) -> None:
    database: Database = client.app.state.database  # type: ignore[attr-defined]

    async def serve() -> None:
        async with running(create_app(service(), lambda _: None)) as leaving:
            request = asyncio.ensure_future(leaving.patch(product, json={"stock": 2}, headers=writer))
            await asyncio.sleep(0.2)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    assert (await client.get(product)).json()["stock"] == 1
    async with database.engine.begin() as other:
        number = int(product.rpartition("/")[2])
        await other.execute(text("SELECT 1 FROM products WHERE id = :id FOR UPDATE"), {"id": number})
        worker = asyncio.create_task(serve())
        await asyncio.sleep(0.6)
    async with asyncio.timeout(10):
        await worker
    assert (await client.get(product)).json()["stock"] == 2


async def test_a_periodic_task_continues_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    turns, went_on = 0, asyncio.Event()

    def act() -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise OSError(24, "Too many open files")
        went_on.set()

    task = asyncio.create_task(_repeat(act, 0.01))
    try:
        async with asyncio.timeout(5):
            await went_on.wait()
    finally:
        task.cancel()
    assert "Too many open files" in caplog.text


async def test_the_connection_of_a_cancelled_statement_is_not_reused(
    service: Callable[..., Settings],
) -> None:
    async with open_database(service(DATABASE_POOL_SIZE="1")) as database:
        first = (await database.fetch("test", "SELECT pg_backend_pid() AS pid"))[0]["pid"]
        statement = asyncio.ensure_future(database.fetch("test", SLOW))
        await asyncio.sleep(0.1)
        statement.cancel()
        with pytest.raises(asyncio.CancelledError):
            await statement
        started = time.monotonic()
        assert (await database.fetch("test", "SELECT pg_backend_pid() AS pid"))[0]["pid"] != first
        assert time.monotonic() - started < 1
        assert database.sample_pool() == {"used": 0, "idle": 1}


async def test_a_silent_database_costs_one_statement_timeout(
    service: Callable[..., Settings], postgres_proxy: Proxy
) -> None:
    name = service().database_url.rpartition("/")[2]
    url = f"postgresql://{name}@127.0.0.1:{postgres_proxy.port}/{name}"
    limits = {"DATABASE_STATEMENT_TIMEOUT": "0.5", "DATABASE_CONNECT_TIMEOUT": "0.5"}
    async with open_database(service(DATABASE_URL=url, **limits)) as database:
        await database.fetch("test", "SELECT 1")
        postgres_proxy.hang()
        for most in (3, 2):  # the second finds no connection and must open one
            started = time.monotonic()
            with pytest.raises(UnavailableError):
                await database.fetch("test", "SELECT 1")
            assert time.monotonic() - started < most
        postgres_proxy.flow()
        await database.fetch("test", "SELECT 1")


async def test_a_silent_endpoint_leaves_time_for_the_others(service: Callable[..., Settings]) -> None:
    target = urlsplit(service().database_url)
    name = target.path.strip("/")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and sends nothing
        port = silent.getsockname()[1]
        url = f"postgresql://{name}@127.0.0.1:{port},{target.hostname}:{target.port}/{name}"
        async with open_database(service(DATABASE_URL=url, DATABASE_CONNECT_TIMEOUT="1")) as database:
            for most in (1.0, 0.4):  # the second time, the endpoint that answered is first
                started = time.monotonic()
                await database.fetch("test", "SELECT 1")
                assert time.monotonic() - started < most
                await database.engine.dispose()


async def test_an_idempotency_key_purged_meanwhile_is_claimed_again(
    service: Callable[..., Settings], category: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(service()) as database:
        idempotency, fetch = Idempotency(database), database.fetch
        request = ProductInput(name="n", category=category, price="1")
        runs = 0

        async def work() -> Outcome:
            nonlocal runs
            runs += 1
            return Outcome("/there", b"{}")

        async def purged(name: str, sql: str, *arguments: Any) -> Any:
            if sql == LOAD:
                async with database.engine.begin() as other:
                    await other.execute(text("DELETE FROM idempotency_keys WHERE owner = 'eve'"))
            return await fetch(name, sql, *arguments)

        await idempotency.once("eve", category, request, work)
        monkeypatch.setattr(database, "fetch", purged)
        assert not (await idempotency.once("eve", category, request, work)).replayed
        assert runs == 2
