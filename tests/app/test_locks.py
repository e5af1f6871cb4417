"""The lock has one holder and an expiry; only its owner can extend or release it."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.locks import Lock, NotAcquired
from app.metrics import Metrics
from app.redis_link import RedisLink
from app.settings import Settings
from tests.app.conftest import Proxy
from tests.lab import ROOT


@pytest.fixture
async def links(service: Callable[..., Settings]) -> AsyncIterator[list[RedisLink]]:
    """Yield the Redis links of two workers."""
    links = [RedisLink(service(), Metrics("test")) for _ in range(2)]
    yield links
    for link in links:
        await link.aclose()


async def test_one_holder_at_a_time(links: list[RedisLink]) -> None:
    inside = done = 0

    async def work(number: int) -> None:
        nonlocal inside, done
        async with Lock(links[number % 2], "work", 5).held(wait=20):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0.001)
            inside -= 1
            done += 1

    await asyncio.gather(*(work(number) for number in range(40)))
    assert done == 40


def test_the_lock_excludes_other_processes(service: Callable[..., Settings], tmp_path: Path) -> None:
    service()
    counter = tmp_path / "counter"
    counter.write_text("0")
    work = f"""
import asyncio, pathlib
from app.locks import Lock
from app.metrics import Metrics
from app.redis_link import RedisLink
from app.settings import load_settings

async def work() -> None:
    link, counter = RedisLink(load_settings(), Metrics("test")), pathlib.Path({str(counter)!r})
    for _ in range(25):
        async with Lock(link, "turns", 10).held(wait=60):
            number = int(counter.read_text())
            await asyncio.sleep(0.001)
            counter.write_text(str(number + 1))
    await link.aclose()

asyncio.run(work())
"""
    processes = [subprocess.Popen([sys.executable, "-c", work], cwd=ROOT) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert counter.read_text() == "100"


async def test_only_the_owner_extends_and_releases(links: list[RedisLink]) -> None:
    one, two = (Lock(link, "owned", 0.6) for link in links)
    assert not await one.extend()
    assert not await one.release()
    assert await one.acquire()
    assert not await two.acquire()
    assert not await two.release()
    for _ in range(3):
        await asyncio.sleep(0.3)
        assert await one.extend()
    await asyncio.sleep(0.7)
    assert await two.acquire()  # it had expired
    assert not await one.extend()
    assert not await one.release()
    assert not await one.acquire()
    assert await two.release()
    assert await one.acquire()


async def test_acquire_stops_waiting_at_the_deadline(links: list[RedisLink]) -> None:
    holder, waiter = (Lock(link, "held", 5) for link in links)
    async with holder.held():
        started = time.monotonic()
        assert not await waiter.acquire(wait=0.3)
        assert 0.28 < time.monotonic() - started < 0.6
        with pytest.raises(NotAcquired):
            async with waiter.held():
                pytest.fail("there were two")
        later = asyncio.ensure_future(waiter.acquire(wait=5))
        await asyncio.sleep(0.05)
    assert await later
    text = links[1].metrics.render().decode()
    assert 'lock_wait_seconds_count{lock="held",result="given up"} 2.0' in text
    assert 'lock_wait_seconds_count{lock="held",result="acquired"} 1.0' in text


async def test_an_error_in_the_block_releases_the_lock(links: list[RedisLink]) -> None:
    async def fail() -> Any:
        async with Lock(links[0], "error", 5).held():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await Lock(links[1], "error", 5).acquire()


async def test_without_redis_the_lock_is_not_acquired(service: Callable[..., Settings], proxy: Proxy) -> None:
    link = RedisLink(service(REDIS_URL=proxy.url, REDIS_RETRY_AFTER="0.1"), Metrics("test"))
    lock = Lock(link, "gone", 1)
    assert await lock.acquire()
    await proxy.down()
    assert not await lock.extend()
    assert not await lock.release()
    assert not await lock.acquire(wait=0.05)
    await proxy.up()
    assert await Lock(link, "another", 1).acquire(wait=5)
    await link.aclose()
