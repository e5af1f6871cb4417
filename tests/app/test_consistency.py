"""A write is seen by the next read on every worker, or cached values are not used."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from app.auth import CLEAR_CACHE, WRITE_PRODUCTS
from app.cache import Cache, Key
from app.db import Database
from app.settings import Settings
from tests.app.conftest import SERVERS, Proxy, sign_in
from tests.app.test_cache import Source, make_cache

URL = "/api/v1/products"
CONFIGURATION = "/etc/redis/redis-cache.conf"
CLIENT = "redis-cli -s /run/redis-cache/redis-server.sock --user probe --pass any --no-auth-warning"
# How Redis refuses writes while it answers reads, and the way back.
REFUSALS = {
    "NOREPLICAS": ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
    "READONLY": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "NOPERM": ("ACL SETUSER api -unlink", "ACL SETUSER api +unlink"),
    "OOM": ("CONFIG SET maxmemory-policy noeviction maxmemory 1", "CONFIG SET maxmemory 64mb"),
    "MISCONF": ("BGSAVE", "BGSAVE"),  # fails while the directory may not be written
}


@pytest.fixture(autouse=True)
def _quick_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cache.POLL_SECONDS", 0.1)
    monkeypatch.setattr("app.epoch.TRUST_SECONDS", 0.6)
    monkeypatch.setattr("app.epoch.SUSPENSION_SECONDS", 1.5)


async def on_host(command: str) -> str:
    return await asyncio.to_thread(SERVERS.ssh, "data", command)


@pytest.fixture(scope="module")
def administrator(migrated: dict[str, str]) -> Iterator[None]:
    """Add an administrator to the host's Redis, and snapshots, so that it can fail to save."""
    assert migrated["REDIS_URL"]
    copy = f"{CONFIGURATION}.kept"
    change = "echo 'user probe on nopass ~* +@all'; echo save 3600 1000000"
    restart = "systemctl restart redis-server@cache"
    SERVERS.ssh("data", f"cp -p {CONFIGURATION} {copy} && ({change}) >> {CONFIGURATION} && {restart}")
    yield
    SERVERS.ssh(
        "data",
        f"chmod 750 /var/lib/redis; mv {copy} {CONFIGURATION}; rm -f /var/lib/redis/cache.rdb; {restart}",
    )


async def refuse(kind: str) -> None:
    before = "chmod 550 /var/lib/redis && " if kind == "MISCONF" else ""
    answer = await on_host(f"{before}{CLIENT} {REFUSALS[kind][0]}; sleep 0.3; {CLIENT} SET probe 1")
    # The administrator may write where only the service's user is restricted.
    assert kind in answer or kind == "NOPERM", answer


async def accept(kind: str) -> None:
    after = "chmod 750 /var/lib/redis && " if kind == "MISCONF" else ""
    assert "OK" in await on_host(f"{after}{CLIENT} {REFUSALS[kind][1]}; sleep 0.3; {CLIENT} SET probe 1")


async def used(*caches: Cache) -> None:
    """Wait until these workers use cached values."""
    async with asyncio.timeout(10):
        for cache in caches:
            while not await cache.refresh():
                pass


async def statuses(clients: list[httpx.AsyncClient]) -> list[tuple[int, str]]:
    answers = [await client.get("/health/ready") for client in clients]
    return [(answer.status_code, answer.json()["status"]) for answer in answers]


@pytest.mark.usefixtures("administrator")
@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_write_is_seen_everywhere_while_redis_refuses_writes(
    start: Callable[..., Any], writer: dict[str, str], kind: str
) -> None:
    clients: list[httpx.AsyncClient] = [await start(), await start()]
    body = {"name": "n", "category": "c", "price": "1", "stock": 0}
    address = (await clients[0].post(URL, json=body, headers=writer)).headers["location"]

    async def stocks() -> set[int]:
        return {(await client.get(address)).json()["stock"] for client in clients * 5}

    assert await stocks() == {0}
    try:
        await refuse(kind)
        for stock in (1, 2):
            changed = await clients[0].patch(address, json={"stock": stock}, headers=writer)
            assert changed.status_code == 200
            assert await stocks() == {stock}
            assert await statuses(clients) == [(200, "degraded")] * 2
    finally:
        await accept(kind)
    async with asyncio.timeout(15):
        while await statuses(clients) != [(200, "ready")] * 2:
            assert await stocks() == {2}
    assert await stocks() == {2}
    metrics = (await clients[1].get("/metrics")).text
    assert 'cache_requests_total{operation="read",result="hit"}' in metrics


@pytest.fixture
async def workers(service: Callable[..., Settings], proxy: Proxy) -> AsyncIterator[list[Cache]]:
    """Yield the caches of a worker behind the proxy and of one beside it."""
    async with (
        make_cache(service(REDIS_URL=proxy.url, REDIS_RETRY_AFTER="0.1")) as cut_off,
        make_cache(service()) as other,
    ):
        yield [cut_off, other]


async def test_a_worker_that_cannot_reach_redis_suspends_the_cache_of_all(
    workers: list[Cache], proxy: Proxy
) -> None:
    cut_off, other = workers
    source = Source(b"old")
    assert await other.fetch("k", source.load) == b"old"
    assert await cut_off.fetch("k", source.load) == b"old"
    assert source.loads == 1
    await proxy.down()
    source.value = b"new"
    await cut_off.invalidate("k")
    assert await other.fetch("k", source.load) == b"new"
    assert not await other.refresh()
    # Longer than one suspension: it lasts as long as the worker is cut off.
    await asyncio.sleep(2)
    source.value = b"newer"
    started = asyncio.get_running_loop().time()
    await cut_off.invalidate("k")
    assert asyncio.get_running_loop().time() - started < 0.5  # no worker uses cached values already
    assert await other.fetch("k", source.load) == b"newer"
    await proxy.up()
    async with asyncio.timeout(10):
        while not (await other.refresh() and await cut_off.refresh()):
            assert await other.fetch("k", source.load) == b"newer"
            await asyncio.sleep(0.05)
    loads = source.loads
    assert {await cache.fetch("k", source.load) for cache in workers * 3} == {b"newer"}
    assert source.loads == loads + 1


async def test_one_lost_connection_suspends_nothing(workers: list[Cache], proxy: Proxy) -> None:
    cut_off, other = workers
    source = Source(b"old")
    assert await other.fetch("kept", source.load) == b"old"
    assert await other.fetch("k", source.load) == b"old"
    await proxy.down()
    await proxy.up()
    source.value = b"new"
    await cut_off.invalidate("k")
    assert await other.fetch("k", source.load) == b"new"
    assert await other.fetch("kept", source.load) == b"old"


async def test_a_worker_that_cannot_reach_postgres_uses_no_cached_values(
    service: Callable[..., Settings],
) -> None:
    source = Source()
    async with make_cache(service()) as cache:
        await cache.fetch("k", source.load)
        async with cache._epoch._database.connection("busy"):  # the poll waits for the connection
            await asyncio.sleep(0.8)
            await cache.fetch("k", source.load)
            assert source.loads == 2
        await used(cache)
        await cache.fetch("k", source.load)
        assert source.loads == 2


@pytest.mark.usefixtures("administrator")
async def test_values_of_an_earlier_redis_process_are_unreachable(service: Callable[..., Settings]) -> None:
    """Redis loads a snapshot at its start that has a value from before its removal."""
    source = Source(b"old")
    async with make_cache(service(REDIS_RETRY_AFTER="0.1")) as cache:
        assert await cache.fetch("k", source.load) == b"old"
        name = cache._name("k")
        await on_host(f"{CLIENT} SAVE")
        source.value = b"new"
        await cache.invalidate("k")
        await on_host(
            "systemctl kill --signal KILL redis-server@cache; sleep 0.2; "
            "systemctl reset-failed redis-server@cache; systemctl start redis-server@cache"
        )
        await used(cache)
        assert await cache._link.call("test", lambda client: client.get(name)) == b"old"
        assert await cache.fetch("k", source.load) == b"new"
    async with make_cache(service()) as fresh:
        assert await fresh.fetch("k", source.load) == b"new"


async def test_older_data_of_the_same_process_is_unreachable(
    service: Callable[..., Settings],
) -> None:
    """A virtual machine is restored from a snapshot of its memory."""
    source = Source(b"old")
    async with make_cache(service()) as cache, make_cache(service()) as other:
        client: Any = cache._link.client
        assert await other.fetch("k", source.load) == b"old"
        name, proof = cache._name("k"), cache._link._proof_key
        kept = [(key, await client.get(key)) for key in (name, proof)]
        source.value = b"new"
        await cache.invalidate("k")
        await asyncio.sleep(0.3)
        for key, value in kept:
            await client.set(key, value, px=60_000)
        await asyncio.sleep(0.8)
        assert await other.fetch("k", source.load) == b"new"
        await used(cache, other)
        assert await other.fetch("k", source.load) == b"new"


async def test_a_product_is_removed_from_the_cache_by_request(client: httpx.AsyncClient) -> None:
    headers = await sign_in(client, CLEAR_CACHE, WRITE_PRODUCTS)
    body = {"name": "n", "category": "c", "price": "1", "stock": 1}
    address = (await client.post(URL, json=body, headers=headers)).headers["location"]
    assert (await client.get(address)).json()["stock"] == 1
    number = int(address.rpartition("/")[2])
    database: Database = client.app.state.database  # type: ignore[attr-defined]
    await database.execute("test", "UPDATE products SET stock = 2 WHERE id = $1", number)
    assert (await client.get(address)).json()["stock"] == 1
    answer = await client.delete(f"{address}/cache", headers=headers)
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.get(address)).json()["stock"] == 2


async def test_an_operator_clears_keys_of_this_service_only(
    service: Callable[..., Settings], run_manage: Callable[..., tuple[int, str, str]]
) -> None:
    settings = service()
    prefix = {"REDIS_KEY_PREFIX": settings.redis_key_prefix}
    key, source = Key("product", "id"), Source()
    async with make_cache(settings) as cache:
        client: Any = cache._link.client
        beside = [f"{settings.redis_key_prefix}other:1:product:1", cache._name("shop:1")]
        for name in beside:
            await client.set(name, b"1", px=60_000)
        for number in range(3):
            await cache.fetch(key(number), source.load)
        assert run_manage("cache-clear", "product:2", **prefix) == (0, "cleared 1\n", "")
        assert run_manage("cache-clear", "product:*", **prefix) == (0, "cleared 2\n", "")
        assert await client.exists(*beside) == 2
        assert run_manage("cache-clear", "*", **prefix) == (0, "cleared 1\n", "")
        assert await client.exists(*beside) == 1
    status, out, err = run_manage("cache-clear", "two words")
    assert (status, out) == (2, "")
    assert err.startswith("The pattern has 1 to 200 printable ASCII characters without spaces, such as")
    status, out, err = run_manage("cache-clear", "*", REDIS_URL="")
    assert (status, out, err) == (4, "", "REDIS_URL is empty: there is no cache.\n")
    status, out, err = run_manage("cache-clear", "*", REDIS_URL="redis://127.0.0.1:1/0")
    assert (status, out, err.count("\n")) == (1, "", 2)
    assert err.splitlines()[1].startswith("Redis failed: Error ")
