"""The cache never serves what a write replaced, and its absence costs one timeout."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from app.cache import Cache, create_client
from app.metrics import Metrics
from app.settings import Settings
from tests.app.conftest import Proxy

URL = "/api/v1/products"


@pytest.fixture
async def cache(service: Callable[..., Settings]) -> AsyncIterator[Cache]:
    cache = Cache(service(), Metrics("test"))
    yield cache
    await cache.close()


class Source:
    """Something to load that counts its loads."""

    def __init__(self, value: bytes | None = b"{}") -> None:
        self.value = value
        self.loads = 0
        self.started = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def load(self) -> bytes | None:
        self.loads += 1
        self.started.set()
        value = self.value
        if self.gate is not None:
            await self.gate.wait()
        return value


async def test_a_value_is_loaded_once_and_expires(cache: Cache, service: Callable[..., Settings]) -> None:
    source = Source(b'{"a":1}')
    assert [await cache.fetch("k1", source.load) for _ in range(3)] == [b'{"a":1}'] * 3
    assert source.loads == 1
    settings = service()
    client = create_client(settings)
    assert client is not None
    async with client:
        lifetime = await client.pttl(f"{settings.redis_key_prefix}k1")
    assert 53_000 < lifetime <= 66_000
    await cache.invalidate("k1")
    source.value = b'{"a":2}'
    assert await cache.fetch("k1", source.load) == b'{"a":2}'


async def test_nothing_is_not_stored(cache: Cache) -> None:
    source = Source(None)
    assert await cache.fetch("k2", source.load) is None
    source.value = b"{}"
    assert await cache.fetch("k2", source.load) == b"{}"
    assert source.loads == 2


async def test_what_was_read_before_a_write_is_not_stored_after_it(cache: Cache) -> None:
    source = Source(b'{"old":1}')
    source.gate = asyncio.Event()
    slow = asyncio.ensure_future(cache.fetch("k3", source.load))
    await source.started.wait()
    source.value = b'{"new":1}'
    await cache.invalidate("k3")
    source.gate.set()
    assert await slow == b'{"old":1}'  # it began before the write
    assert await cache.fetch("k3", source.load) == b'{"new":1}'
    assert await cache.fetch("k3", source.load) == b'{"new":1}'
    assert source.loads == 2


async def test_a_reader_beside_a_loading_one_does_not_wait_or_store(cache: Cache) -> None:
    slow_source, quick_source = Source(b'{"slow":1}'), Source(b'{"quick":1}')
    slow_source.gate = asyncio.Event()
    slow = asyncio.ensure_future(cache.fetch("k4", slow_source.load))
    await slow_source.started.wait()
    assert await cache.fetch("k4", quick_source.load) == b'{"quick":1}'
    slow_source.gate.set()
    await slow
    assert await cache.fetch("k4", quick_source.load) == b'{"slow":1}'


async def test_without_a_redis_url_everything_is_loaded(service: Callable[..., Settings]) -> None:
    cache = Cache(service(REDIS_URL=""), Metrics("test"))
    source = Source()
    for _ in range(2):
        assert await cache.fetch("k", source.load) == b"{}"
    await cache.invalidate("k")
    assert source.loads == 2
    assert not await cache.ping()
    await cache.close()


async def test_redis_gone_costs_one_timeout_and_is_noticed_when_back(
    start: Callable[..., Any], proxy: Proxy, writer: dict[str, str]
) -> None:
    client: httpx.AsyncClient = await start(
        REDIS_URL=proxy.url, REDIS_RETRY_AFTER="0.5", REDIS_TIMEOUT="0.25"
    )
    created = await client.post(URL, json={"name": "n", "category": "c", "price": "1"}, headers=writer)
    address = created.headers["location"]
    for _ in range(2):
        assert (await client.get(address)).status_code == 200

    proxy.hang()
    started = time.monotonic()
    for _ in range(10):
        assert (await client.get(address)).status_code == 200
    assert 0.2 < time.monotonic() - started < 0.75
    metrics = (await client.get("/metrics")).text
    assert "cache_up 0.0" in metrics
    assert 'cache_requests_total{operation="get",result="error"} 1.0' in metrics
    assert 'cache_requests_total{operation="read",result="bypass"} 10.0' in metrics
    ready = await client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["status"] == "degraded"

    # A write while Redis is away: its removal is made good before a cached value is served again.
    changed = await client.patch(address, json={"stock": 42}, headers=writer)
    assert changed.status_code == 200
    proxy.flow()
    await asyncio.sleep(0.6)
    assert (await client.get(address)).json()["stock"] == 42
    assert "cache_up 1.0" in (await client.get("/metrics")).text
    assert (await client.get("/health/ready")).json()["status"] == "ready"


async def test_redis_killed_and_restarted_loses_no_request(
    start: Callable[..., Any], proxy: Proxy, writer: dict[str, str]
) -> None:
    client: httpx.AsyncClient = await start(REDIS_URL=proxy.url, REDIS_RETRY_AFTER="0.1")
    created = await client.post(URL, json={"name": "n", "category": "c", "price": "1"}, headers=writer)
    address = created.headers["location"]
    for round_ in range(3):
        await proxy.down()
        answers = await asyncio.gather(*(client.get(address) for _ in range(30)))
        assert {answer.status_code for answer in answers} == {200}
        changed = await client.patch(address, json={"stock": round_}, headers=writer)
        assert changed.status_code == 200
        await proxy.up()
        await asyncio.sleep(0.15)
        for _ in range(3):
            assert (await client.get(address)).json()["stock"] == round_
    assert "cache_up 1.0" in (await client.get("/metrics")).text


async def test_very_many_missed_removals_clear_the_prefix(
    service: Callable[..., Settings],
    migrated: dict[str, str],
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.cache.MOST_MISSED_KEYS", 2)
    prefix = migrated["REDIS_KEY_PREFIX"] + "many:"
    settings = service(REDIS_URL=proxy.url, REDIS_RETRY_AFTER="0.05", REDIS_KEY_PREFIX=prefix)
    cache = Cache(settings, Metrics("test"))
    source = Source(b"[]")
    for number in range(5):
        await cache.fetch(f"many{number}", source.load)
    await proxy.down()
    for number in range(4):
        await cache.invalidate(f"many{number}")
    await proxy.up()
    await asyncio.sleep(0.1)
    for number in range(5):
        await cache.fetch(f"many{number}", source.load)
    assert source.loads == 10
    await cache.close()


async def test_a_full_pool_is_busy_not_broken(service: Callable[..., Settings], proxy: Proxy) -> None:
    cache = Cache(service(REDIS_URL=proxy.url, REDIS_MAX_CONNECTIONS="1"), Metrics("test"))
    source = Source()
    values = await asyncio.gather(*(cache.fetch(f"full{n}", source.load) for n in range(20)))
    assert values == [b"{}"] * 20
    assert await cache.ping()
    await cache.close()
