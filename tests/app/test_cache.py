"""The cache serves no stale value after a write, and an outage of Redis costs one timeout."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from app.cache import Cache, Key, cached
from app.epoch import Epoch, background_database
from app.metrics import Metrics
from app.redis_link import RedisLink, Unavailable, create_client
from app.settings import Settings
from tests.app.conftest import Proxy, breaker_closed

URL = "/api/v1/products"

BUSY = "for _ = 1, 40000000 do end"  # runs for some tenths of a second


@pytest.fixture(autouse=True)
def _quick_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cache.POLL_SECONDS", 0.1)
    monkeypatch.setattr("app.epoch.TRUST_SECONDS", 0.6)
    monkeypatch.setattr("app.epoch.SUSPENSION_SECONDS", 1.5)


@pytest.fixture
async def cache(service: Callable[..., Settings]) -> AsyncIterator[Cache]:
    async with make_cache(service()) as cache:
        yield cache


@asynccontextmanager
async def make_cache(settings: Settings) -> AsyncIterator[Cache]:
    """Yield the cache of one more worker."""
    metrics = Metrics("test")
    async with (
        aclosing(background_database(settings, metrics)) as database,
        aclosing(RedisLink(settings, metrics)) as link,
        aclosing(Cache(link, Epoch(database, link.prefix), settings.cache_ttl)) as cache,
    ):
        await cache.start()
        yield cache


class Source:
    """A data source that counts its loads."""

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
        lifetime = await client.pttl(cache._name("k1"))
    assert 53_000 < lifetime <= 66_000
    await cache.invalidate("k1")
    source.value = b'{"a":2}'
    assert await cache.fetch("k1", source.load) == b'{"a":2}'


async def test_none_is_not_stored(cache: Cache) -> None:
    source = Source(None)
    assert await cache.fetch("k2", source.load) is None
    source.value = b"{}"
    assert await cache.fetch("k2", source.load) == b"{}"
    assert source.loads == 2


async def test_none_is_not_shared_with_a_later_reader(cache: Cache) -> None:
    """The value may have been created since the load began, and a creation invalidates no key."""
    source = Source(None)
    source.gate = asyncio.Event()
    first = asyncio.ensure_future(cache.fetch("made", source.load))
    await source.started.wait()
    source.value = b"{}"
    second = asyncio.ensure_future(cache.fetch("made", source.load))
    await asyncio.sleep(0.05)
    source.gate.set()
    assert (await first, await second) == (None, b"{}")
    assert source.loads == 2


async def test_a_thousand_readers_of_a_missing_value_load_at_most_twice(cache: Cache) -> None:
    source = Source(None)

    async def load() -> bytes | None:
        await asyncio.sleep(0.05)
        return await source.load()

    assert await asyncio.gather(*(cache.fetch("none", load) for _ in range(1000))) == [None] * 1000
    assert source.loads <= 2


async def test_a_value_read_before_a_write_is_not_stored_after_it(cache: Cache) -> None:
    source = Source(b'{"old":1}')
    source.gate = asyncio.Event()
    slow = asyncio.ensure_future(cache.fetch("k3", source.load))
    await source.started.wait()
    source.value = b'{"new":1}'
    await cache.invalidate("k3")
    source.gate.set()
    assert await slow == b'{"old":1}'  # the read began before the write
    assert await cache.fetch("k3", source.load) == b'{"new":1}'
    assert await cache.fetch("k3", source.load) == b'{"new":1}'
    assert source.loads == 2


async def test_a_thousand_readers_of_one_cold_key_load_it_once(service: Callable[..., Settings]) -> None:
    source = Source(b"[1]")

    async def load() -> bytes | None:
        await asyncio.sleep(0.05)
        return await source.load()

    async with make_cache(service()) as one, make_cache(service()) as two:
        values = await asyncio.gather(*((one, two)[n % 2].fetch("cold", load) for n in range(1000)))
    assert values == [b"[1]"] * 1000
    assert source.loads == 1


async def test_a_reader_after_a_write_does_not_join_an_earlier_load(
    service: Callable[..., Settings],
) -> None:
    old, new = Source(b"[1]"), Source(b"[2]")
    old.gate = asyncio.Event()
    async with make_cache(service()) as one, make_cache(service()) as two:
        slow = asyncio.ensure_future(one.fetch("k", old.load))
        await old.started.wait()
        shared = asyncio.ensure_future(one.fetch("k", new.load))
        await asyncio.sleep(0.05)
        assert not shared.done()
        await two.invalidate("k")
        assert await one.fetch("k", new.load) == b"[2]"
        old.gate.set()
        assert await slow == await shared == b"[1]"  # both reads began before the write
        assert await two.fetch("k", new.load) == b"[2]"
    assert (old.loads, new.loads) == (1, 1)


async def test_a_reader_waits_for_another_worker_until_the_deadline(
    service: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cache.WAIT_SECONDS", 0.1)
    slow, quick = Source(b"[1]"), Source(b"[2]")
    slow.gate = asyncio.Event()
    async with make_cache(service()) as one, make_cache(service()) as two:
        first = asyncio.ensure_future(one.fetch("k", slow.load))
        await slow.started.wait()
        assert await two.fetch("k", quick.load) == b"[2]"
        assert await two.fetch("k", quick.load) == b"[2]"
        slow.gate.set()
        assert await first == b"[1]"  # and it does not overwrite the value of the faster load
        assert await one.fetch("k", slow.load) == b"[2]"
    assert (slow.loads, quick.loads) == (1, 1)


async def test_a_lease_from_before_a_redis_outage_blocks_no_reader(
    service: Callable[..., Settings], proxy: Proxy
) -> None:
    source = Source(b"[1]")
    source.gate = asyncio.Event()
    async with make_cache(service(REDIS_URL=proxy.url, REDIS_RETRY_AFTER="0.1")) as cache:
        slow = asyncio.ensure_future(cache.fetch("k", source.load))
        await source.started.wait()
        await proxy.down()
        source.gate.set()
        assert await slow == b"[1]"
        await proxy.up()
        await asyncio.sleep(0.15)
        started = time.monotonic()
        assert await cache.fetch("k", source.load) == b"[1]"
        assert await cache.fetch("k", source.load) == b"[1]"
        assert time.monotonic() - started < 1
        assert source.loads == 2


async def test_a_failed_load_fails_its_readers_and_releases_the_lease(cache: Cache) -> None:
    async def fail() -> bytes | None:
        await asyncio.sleep(0.02)
        raise ZeroDivisionError

    results = await asyncio.gather(*(cache.fetch("k", fail) for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 5
    started = time.monotonic()
    assert await cache.fetch("k", Source().load) == b"{}"
    assert time.monotonic() - started < 1.5  # a lease that stood would cost 2 s


async def test_a_disconnected_reader_does_not_cancel_the_load(cache: Cache) -> None:
    source = Source(b"[1]")
    source.gate = asyncio.Event()
    first = asyncio.ensure_future(cache.fetch("k", source.load))
    await source.started.wait()
    second = asyncio.ensure_future(cache.fetch("k", source.load))
    leaving = asyncio.ensure_future(cache.fetch("other", source.load))
    await asyncio.sleep(0.02)
    first.cancel()
    leaving.cancel()
    source.gate.set()
    assert await second == b"[1]"
    assert source.loads == 2
    # A reader may also disconnect during the GET.
    third = asyncio.ensure_future(cache.fetch("k", source.load))
    await asyncio.sleep(0)
    third.cancel()
    assert await cache.fetch("k", source.load) == b"[1]"


async def test_closing_ends_a_load_whose_readers_have_left(service: Callable[..., Settings]) -> None:
    before = asyncio.all_tasks()
    async with make_cache(service()) as cache:
        source = Source()
        source.gate = asyncio.Event()
        reader = asyncio.ensure_future(cache.fetch("left", source.load))
        await source.started.wait()
        reader.cancel()
    assert asyncio.all_tasks() == before


class Shop:
    """An object with a cached method."""

    key = Key("shop", "name", "page")
    loads = 0

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    @cached(key, ttl=5, skip=lambda *_, page=1, **__: page > 9)
    async def read(self, _session: object, name: str, page: int = 1) -> bytes | None:
        assert name
        assert page
        self.loads += 1
        return f"[{self.loads}]".encode()


async def test_a_method_is_cached_by_its_declared_arguments(
    cache: Cache, service: Callable[..., Settings]
) -> None:
    shop = Shop(cache)
    assert [await shop.read(object(), "a"), await shop.read(object(), name="a", page=1)] == [b"[1]"] * 2
    assert await shop.read(None, "a", 2) == b"[2]"
    assert await shop.read(None, "a", page=10) == b"[3]"
    assert await shop.read(None, "a", page=10) == b"[4]"
    assert await shop.read(None, "a") == b"[1]"
    await cache.invalidate(Shop.key("a", 1))
    assert await shop.read(None, "a") == b"[5]"
    assert await shop.read(None, "a", 2) == b"[2]"
    settings = service()
    client = create_client(settings)
    assert client is not None
    async with client:
        assert 4_000 < await client.pttl(cache._name('shop:"a",1')) < 5_600
    with pytest.raises(TypeError):
        await shop.read(None, object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs name, page"):
        Shop.key("a")
    with pytest.raises(ValueError, match="name"):
        cached(Shop.key)(lambda _self, page: shop.read(None, page))


async def test_clear_removes_one_key_family_only(cache: Cache) -> None:
    star, other = Key("sta*", "n"), Key("start", "n")
    source = Source()
    for number in range(10):
        await cache.fetch(star(number), source.load)
        await cache.fetch(other(number), source.load)
    assert await cache.clear(star.pattern) == 10
    for number in range(10):
        await cache.fetch(star(number), source.load)
        await cache.fetch(other(number), source.load)
    assert source.loads == 30
    await cache.invalidate(*(other(number) for number in range(10)))
    await cache.clear()
    await cache.fetch(star(1), source.load)
    await cache.fetch(other(1), source.load)
    assert source.loads == 32


json_values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=300)


@hypothesis_settings(max_examples=200)
@given(st.tuples(json_values, json_values), st.tuples(json_values, json_values))
def test_keys_are_equal_only_for_equal_arguments(one: tuple[Any, ...], two: tuple[Any, ...]) -> None:
    key = Key("k", "a", "b")
    try:
        keys = [key(*pair) for pair in (one, two)]
    except TypeError:  # a lone surrogate cannot be encoded
        return
    assert (keys[0] == keys[1]) == (repr(one) == repr(two))
    assert all(len(made) < 210 for made in keys)


async def test_without_redis_url_every_read_is_loaded(service: Callable[..., Settings]) -> None:
    source = Source()
    async with make_cache(service(REDIS_URL="")) as cache:
        for _ in range(2):
            assert await cache.fetch("k", source.load) == b"{}"
        await cache.invalidate("k")
        with pytest.raises(Unavailable):
            await cache.clear()
        assert source.loads == 2
        assert not await cache._link.check()


async def test_a_redis_outage_costs_one_timeout_and_the_breaker_closes_after_it(
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
    assert 'cache_requests_total{operation="read",result="bypass"} 10.0' in metrics
    ready = await client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["status"] == "degraded"

    # After a write during the outage no cached value from before it is served again.
    changed = await client.patch(address, json={"stock": 42}, headers=writer)
    assert changed.status_code == 200
    proxy.flow()
    async with asyncio.timeout(8):
        while (await client.get("/health/ready")).json()["status"] != "ready":
            assert (await client.get(address)).json()["stock"] == 42
            await asyncio.sleep(0.05)
    for _ in range(2):
        assert (await client.get(address)).json()["stock"] == 42
    assert "cache_up 1.0" in (await client.get("/metrics")).text


async def test_the_breaker_stays_open_until_the_recovery_is_complete(
    service: Callable[..., Settings], proxy: Proxy
) -> None:
    async with make_cache(service(REDIS_URL=proxy.url, REDIS_RETRY_AFTER="0.05")) as cache:
        go_on = asyncio.Event()

        async def recover(_client: Redis, _regressed: bool) -> None:
            await go_on.wait()

        cache._link.on_recovery = recover
        await cache.fetch("k", Source(b"old").load)
        await proxy.down()
        await cache.invalidate("k")
        await proxy.up()
        await asyncio.sleep(0.3)
        assert not cache._link.available
        assert await cache.fetch("k", Source(b"new").load) == b"new"
        go_on.set()
        await breaker_closed(cache._link)
        assert await cache.fetch("k", Source(b"new").load) == b"new"


async def test_a_suspended_worker_does_not_take_redis_for_failed(service: Callable[..., Settings]) -> None:
    async with make_cache(service(REDIS_TIMEOUT="0.25")) as cache:
        asking = asyncio.create_task(cache._link.call("slow", lambda client: client.eval(BUSY, 0)))
        await asyncio.sleep(0.02)
        time.sleep(1)  # noqa: ASYNC251  (the worker stands still, Redis answers)
        await asking
        assert cache._link.available


async def test_a_busy_loop_does_not_take_redis_for_failed(service: Callable[..., Settings]) -> None:
    """A thousand cold values at once: their loads need the processor for seconds."""
    async with make_cache(service(REDIS_TIMEOUT="1", REDIS_MAX_CONNECTIONS="8")) as cache:

        async def load() -> bytes:
            time.sleep(0.002)  # noqa: ASYNC251
            return b"{}"

        assert await asyncio.gather(*(cache.fetch(f"b{n}", load) for n in range(1000))) == [b"{}"] * 1000
        assert cache._link.available
        assert 'result="error"' not in cache._link.metrics.render().decode()
        # The loads may have kept the epoch's poll waiting for longer than its answer is trusted.
        assert await cache.refresh()
        assert await cache.fetch("b999", Source(b"[]").load) == b"{}"


async def test_a_cached_method_must_return_bytes(cache: Cache) -> None:
    class Wrong:
        def __init__(self) -> None:
            self.cache = cache

        @cached(Key("wrong", "name"), skip=lambda name: name == "skipped")
        async def read(self, name: str) -> Any:
            return {"name": name}

    for name in ("a", "skipped"):
        with pytest.raises(TypeError, match=r"Wrong\.read is cached: it must return JSON as bytes, not dict"):
            await Wrong().read(name)
    assert cache._link.available
    assert 'result="error"' not in cache._link.metrics.render().decode()


async def test_commands_wait_for_a_free_redis_connection(
    service: Callable[..., Settings], proxy: Proxy
) -> None:
    source = Source()
    async with make_cache(service(REDIS_URL=proxy.url, REDIS_MAX_CONNECTIONS="1")) as cache:
        values = await asyncio.gather(*(cache.fetch(f"full{n}", source.load) for n in range(20)))
        assert values == [b"{}"] * 20
        assert source.loads == 20
        assert await cache._link.check()
