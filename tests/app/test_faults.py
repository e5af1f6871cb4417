"""Postgres and Redis fail under traffic: no response is wrong, and no write happens twice."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from secrets import token_hex
from typing import Any

import httpx
import pytest

from app.epoch import TRUST_SECONDS
from tests.app.conftest import SERVERS
from tests.app.test_gunicorn import Server

URL = "/api/v1/products"
POSTGRES, REDIS = "'postgresql@*'", "redis-server@cache"
START = f"systemctl start postgresql {POSTGRES} {REDIS}"
Serve = Callable[..., Awaitable[httpx.AsyncClient]]


async def on_host(command: str) -> None:
    """Run a command on the servers' host without blocking the traffic."""
    await asyncio.to_thread(SERVERS.ssh, "data", command)


@pytest.fixture
async def serve(migrated: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serve]:
    """Start a service with two workers; afterwards, start Postgres and Redis again."""
    async with AsyncExitStack() as stack:

        async def make(**changes: str) -> httpx.AsyncClient:
            server = Server(tmp_path_factory.mktemp("g"), migrated | changes)
            stack.callback(server.close)
            assert b"READY=1" in await asyncio.to_thread(server.notify.recv, 1000)
            transport = httpx.AsyncHTTPTransport(uds=str(server.path))
            client = httpx.AsyncClient(transport=transport, base_url="http://api", timeout=20)
            return await stack.enter_async_context(client)

        yield make
    await on_host(f"systemctl kill --signal CONT {REDIS}; systemctl reset-failed; {START}")


async def all_ready(client: httpx.AsyncClient) -> None:
    """Wait until every worker is ready and uses Redis."""
    deadline, ready = time.monotonic() + 20, 0
    while ready < 10:
        await asyncio.sleep(0.05)
        answers = await asyncio.gather(*(client.get("/health/ready") for _ in range(10)))
        ready = sum(answer.json()["status"] == "ready" for answer in answers)
        assert time.monotonic() < deadline


async def repeat_until(stop: asyncio.Event, action: Callable[[], Awaitable[None]]) -> None:
    while not stop.is_set():
        await action()


async def test_postgres_restarted_and_killed_under_traffic(
    serve: Serve, writer: dict[str, str], category: str, measured: list[str]
) -> None:
    client = await serve(REDIS_URL="")
    product = {"name": "n", "category": category, "price": "1"}
    first = (await client.post(URL, json=product, headers=writer)).json()
    seen: Counter[int] = Counter()
    written: set[str] = set()
    stop = asyncio.Event()

    def counted(answer: httpx.Response) -> httpx.Response:
        seen[answer.status_code] += 1
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["content-type"] == "application/problem+json"
        return answer

    async def read() -> None:
        answer = counted(await client.get(f"{URL}/{first['id']}"))
        assert answer.status_code == 503 or answer.json() == first
        await asyncio.sleep(0.005)

    async def write() -> None:
        """Retry with the same idempotency key until the write succeeds."""
        key = {"Idempotency-Key": f"order-{token_hex(8)}"}
        status = 0
        while status != 201:
            answer = counted(await client.post(URL, json=product, headers=writer | key))
            status = answer.status_code
            await asyncio.sleep(0.01)
        written.add(answer.json()["id"])

    traffic = [asyncio.create_task(repeat_until(stop, action)) for action in (read, read, write, write)]
    for command in (f"systemctl restart {POSTGRES}", f"systemctl kill --signal KILL {POSTGRES}"):
        await asyncio.sleep(0.3)
        started = time.monotonic()
        await on_host(command)
        if "kill" in command:
            assert (await client.get("/health/ready")).status_code == 503
            assert (await client.get("/health/live")).status_code == 200
            await on_host(f"systemctl reset-failed {POSTGRES}; {START}")
        await all_ready(client)
        measured.append(f"{command}: ready after {time.monotonic() - started:.1f} s")
    await asyncio.sleep(0.3)
    stop.set()
    await asyncio.gather(*traffic)
    assert set(seen) == {200, 201, 503}
    assert {(await client.get(URL)).status_code for _ in range(40)} == {200}
    stored: set[str] = set()
    query: dict[str, Any] = {"category": category, "page_size": 100}
    while query.get("after", "") is not None:
        page = (await client.get(URL, params=query)).json()
        stored |= {item["id"] for item in page["items"]}
        query["after"] = page["next"]
    assert stored == written | {first["id"]}


async def test_redis_stopped_and_killed_under_traffic(
    serve: Serve, writer: dict[str, str], category: str
) -> None:
    client = await serve(REDIS_RETRY_AFTER="0.1", REDIS_TIMEOUT="0.5")
    product = {"name": "n", "category": category, "price": "1", "stock": 0}
    address = (await client.post(URL, json=product, headers=writer)).headers["location"]
    stop = asyncio.Event()
    seen: Counter[tuple[int, int]] = Counter()

    async def read() -> None:
        answer = await client.get(address)
        seen[answer.status_code, answer.json()["stock"]] += 1
        await asyncio.sleep(0.002)

    async def change(stock: int) -> None:
        changed = await client.patch(address, json={"stock": stock}, headers=writer)
        assert changed.status_code == 200
        assert {(await client.get(address)).json()["stock"] for _ in range(20)} == {stock}

    traffic = [asyncio.create_task(repeat_until(stop, read)) for _ in range(6)]
    await on_host(f"systemctl stop {REDIS}")
    await change(1)
    await on_host(START)
    await all_ready(client)
    assert {(await client.get(address)).json()["stock"] for _ in range(20)} == {1}
    await on_host(f"systemctl kill --signal KILL {REDIS}; sleep 0.5; {START}")
    await all_ready(client)
    await change(2)
    stop.set()
    await asyncio.gather(*traffic)
    assert {status for status, _ in seen} == {200}


async def test_a_hanging_redis_costs_one_timeout_per_worker(
    serve: Serve, writer: dict[str, str], category: str
) -> None:
    client = await serve(REDIS_RETRY_AFTER="5", REDIS_TIMEOUT="1")
    product = {"name": "n", "category": category, "price": "1", "stock": 0}
    address = (await client.post(URL, json=product, headers=writer)).headers["location"]
    assert (await client.get(address)).status_code == 200
    await on_host(f"systemctl kill --signal STOP {REDIS}")
    started = time.monotonic()
    for _ in range(40):
        assert (await client.get(address)).status_code == 200
    assert time.monotonic() - started < 4  # at most one timeout for each of the two workers
    started = time.monotonic()
    changed = await client.patch(address, json={"stock": 1}, headers=writer)
    assert changed.status_code == 200
    # Until no worker trusts the cache. The first probe after the failure has had its timeout already.
    assert time.monotonic() - started < TRUST_SECONDS + 2
    metrics = (await client.get("/metrics")).text
    assert "cache_up 0.0" in metrics
    assert 'cache_requests_total{operation="read",result="bypass"} 40.0' in metrics
    await on_host(f"systemctl kill --signal CONT {REDIS}")
    await all_ready(client)
    assert {(await client.get(address)).json()["stock"] for _ in range(20)} == {1}
