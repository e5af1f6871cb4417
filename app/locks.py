"""A lock shared by every process that uses the same Redis."""

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
    """Somebody else held the lock until the deadline, or Redis was away."""


class Lock:
    """Keeps a piece of work from being done twice at once, most of the time, at little cost.

    Each holder writes a random token with an expiry; only who knows the token can extend or release, and
    Redis checks and acts in one step. A holder that dies leaves the lock free after `ttl` seconds.

    What it does not promise: that there is never a second holder. A holder that is stopped for longer than
    the ttl (a pause, a slow network) still believes in its lock; a Redis that restarts, fails over or is
    full may forget it. So guard efficiency with it, and guard correctness in Postgres, by a constraint or a
    row lock. It is not fair, and not re-entrant. Metrics know it by its name up to a colon.
    """

    def __init__(self, link: RedisLink, name: str, ttl: float) -> None:
        self.name = name
        self._kind = name.partition(":")[0]
        self._link = link
        key = f"{link.prefix}lock:{name}"
        # Without a client no command is run.
        self._lock: Any = link.client and link.client.lock(key, timeout=ttl, thread_local=False)

    async def acquire(self, wait: float = 0) -> bool:
        """Try until `wait` seconds have passed; return whether the lock is held now."""
        started = time.monotonic()
        while True:
            acquired = await self._do("lock", lambda lock: lock.acquire(blocking=False))
            left = started + wait - time.monotonic()
            if acquired or left <= 0:
                break
            await asyncio.sleep(min(left, random.uniform(0.01, 0.1)))  # noqa: S311
        waits = self._link.metrics.lock_waits.labels(self._kind, "acquired" if acquired else "given up")
        waits.observe(time.monotonic() - started)
        return acquired

    async def extend(self) -> bool:
        """Start the ttl again; False means that the lock is, or may be, another's: stop the work."""
        return await self._do("lock_extend", lambda lock: lock.reacquire())

    async def release(self) -> bool:
        """Give the lock up; False means that it had expired before, or that Redis is away."""
        return await self._do("lock_release", lambda lock: lock.release())

    @asynccontextmanager
    async def held(self, wait: float = 0) -> AsyncIterator["Lock"]:
        """Hold the lock for a block, or raise NotAcquired; the block extends it if it takes longer."""
        if not await self.acquire(wait):
            raise NotAcquired(self.name)
        try:
            yield self
        finally:
            await self.release()

    async def _do(self, operation: str, action: Callable[[RedisLock], Awaitable[Any]]) -> bool:
        async def command(_client: Redis) -> bool:
            try:
                return await action(self._lock) is not False
            except LockError:  # not ours, or no longer
                return False

        try:
            return await self._link.call(operation, command)
        except Unavailable:
            return False
