"""Servers that go away under traffic: nothing is answered wrongly, written twice, or broken afterwards."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Any

import httpx
from sqlalchemy import make_url

from tests.app.conftest import Proxy

URL = "/api/v1/products"


async def until_told(stop: asyncio.Event, action: Callable[[], Awaitable[None]]) -> None:
    while not stop.is_set():
        await action()


async def test_postgres_restarted_under_traffic(
    start: Callable[..., Any],
    postgres_proxy: Proxy,
    migrated: dict[str, str],
    writer: dict[str, str],
    category: str,
) -> None:
    url = make_url(migrated["DATABASE_URL"])
    worker: httpx.AsyncClient = await start(
        DATABASE_URL=f"postgresql://{url.username}@127.0.0.1:{postgres_proxy.port}/{url.database}",
        REDIS_URL="",
    )
    product = {"name": "n", "category": category, "price": "1"}
    address = (await worker.post(URL, json=product, headers=writer)).headers["location"]
    seen: Counter[int] = Counter()
    written: set[str] = set()
    stop = asyncio.Event()

    async def read() -> None:
        answer = await worker.get(address)
        seen[answer.status_code] += 1
        if answer.status_code == 503:
            assert answer.headers["retry-after"]
            await asyncio.sleep(0.01)

    async def write() -> None:
        """As a client should: the same key until it is told that it worked."""
        key = {"Idempotency-Key": f"order-{token_hex(8)}"}
        while True:
            answer = await worker.post(URL, json=product, headers=writer | key)
            seen[answer.status_code] += 1
            if answer.status_code == 201:
                written.add(answer.json()["id"])
                return
            await asyncio.sleep(0.05)

    traffic = [asyncio.create_task(until_told(stop, action)) for action in (read, read, write, write)]
    for _ in range(2):
        await asyncio.sleep(0.3)
        await postgres_proxy.down()
        await asyncio.sleep(0.3)
        assert (await worker.get("/health/ready")).status_code == 503
        assert (await worker.get("/health/live")).status_code == 200
        await postgres_proxy.up()
    await asyncio.sleep(0.3)
    stop.set()
    await asyncio.gather(*traffic)
    assert set(seen) == {200, 201, 503}
    assert (await worker.get("/health/ready")).status_code == 200
    assert {(await worker.get(address)).status_code for _ in range(20)} == {200}
    stored: set[str] = set()
    after = None
    while True:
        query: dict[str, Any] = {"category": category, "page_size": 100} | ({"after": after} if after else {})
        page = (await worker.get(URL, params=query)).json()
        stored |= {item["id"] for item in page["items"]}
        after = page["next"]
        if after is None:
            break
    # The first one was written without a key.
    assert len(stored) == len(written) + 1
    assert written < stored


async def test_redis_killed_and_back_under_traffic(
    start: Callable[..., Any], proxy: Proxy, writer: dict[str, str], category: str
) -> None:
    workers = [
        await start(REDIS_URL=proxy.url, REDIS_RETRY_AFTER="0.1", REDIS_TIMEOUT="0.5") for _ in range(2)
    ]
    product = {"name": "n", "category": category, "price": "1", "stock": 0}
    address = (await workers[0].post(URL, json=product, headers=writer)).headers["location"]
    stop = asyncio.Event()
    statuses: Counter[int] = Counter()

    async def read() -> None:
        for worker in workers:
            statuses[(await worker.get(address)).status_code] += 1

    traffic = [asyncio.create_task(until_told(stop, read)) for _ in range(6)]
    for stock in range(1, 4):
        await asyncio.sleep(0.2)
        await proxy.down()
        await asyncio.sleep(0.2)
        changed = await workers[0].patch(address, json={"stock": stock}, headers=writer)
        assert changed.status_code == 200
        assert (await workers[0].get(address)).json()["stock"] == stock
        await proxy.up()
        await asyncio.sleep(0.4)  # both workers have asked Redis again
        for worker in workers:
            assert (await worker.get(address)).json()["stock"] == stock
    stop.set()
    await asyncio.gather(*traffic)
    assert set(statuses) == {200}
