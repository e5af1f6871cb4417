"""A lock in Redis, shared by the processes of all hosts."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.lock import Lock as RedisLock
from redis.exceptions import LockError

from app.redis_link import RedisLink, Unavailable


class NotAcquired(Exception):  # noqa: N818  (an outcome)
    """Another process held the lock until the deadline, or Redis was unavailable."""


class Lock:
    """A lock with an expiry, for efficiency: it makes concurrent work rare, not impossible.

    Each holder stores a random token with a ttl in seconds. Only the holder of the token can extend or
    release the lock; Redis checks the token and acts in one step. A holder that dies frees the lock after
    the ttl.

    There can be a second holder: the first one was suspended for longer than the ttl, or Redis restarted,
    failed over or evicted the key. Guard correctness in Postgres, with a constraint or a row lock. The lock
    is neither fair nor re-entrant. The metric label is the name up to the first colon.
    """

    def __init__(self, link: RedisLink, name: str, ttl: float) -> None:
        self.name = name
        self._metric_label = name.partition(":")[0]
        self._link = link
        key = f"{link.prefix}lock:{name}"
        # None without a client; `call` then raises Unavailable before it is used.
        self._lock: Any = link.client and link.client.lock(key, timeout=ttl, thread_local=False)

    async def acquire(self, wait: float = 0) -> bool:
        """Try for up to `wait` seconds; return whether the lock is held now."""
        started = time.monotonic()
        while True:
            acquired = await self._run("lock", lambda lock: lock.acquire(blocking=False))
            left = started + wait - time.monotonic()
            if acquired or left <= 0:
                break
            await asyncio.sleep(min(left, random.uniform(0.01, 0.1)))  # noqa: S311
        waits = self._link.metrics.lock_waits.labels(
            self._metric_label, "acquired" if acquired else "given up"
        )
        waits.observe(time.monotonic() - started)
        return acquired

    async def extend(self) -> bool:
        """Restart the ttl; if False, another process holds or may hold the lock: stop the work."""
        return await self._run("lock_extend", lambda lock: lock.reacquire())

    async def release(self) -> bool:
        """Release the lock; if False, it had expired or Redis is unavailable."""
        return await self._run("lock_release", lambda lock: lock.release())

    @asynccontextmanager
    async def held(self, wait: float = 0) -> AsyncIterator["Lock"]:
        """Hold the lock for a block or raise NotAcquired; a block longer than the ttl must extend it."""
        if not await self.acquire(wait):
            raise NotAcquired(self.name)
        try:
            yield self
        finally:
            await self.release()

    async def _run(self, operation: str, action: Callable[[RedisLock], Awaitable[Any]]) -> bool:
        async def command(_client: Redis) -> bool:
            try:
                return await action(self._lock) is not False
            except LockError:  # expired, or never held
                return False

        try:
            return await self._link.call(operation, command)
        except Unavailable:
            return False
