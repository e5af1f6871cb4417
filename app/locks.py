"""A lock shared by every process that uses the same Redis."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Final

from app.redis_link import RedisLink, Unavailable

EXTEND_IF_OWNED: Final = (
    "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
)
RELEASE_IF_OWNED: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"
SHORTEST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.25


class NotAcquired(Exception):  # noqa: N818  (an outcome)
    """Somebody else held the lock until the deadline, or Redis was away."""


class Lock:
    """Keeps a piece of work from being done twice at once, most of the time, at little cost.

    Each holder writes a random token with an expiry; only who knows the token can extend or release, and
    Redis checks and acts in one step. A holder that dies leaves the lock free after `ttl` seconds.

    What it does not promise: that there is never a second holder. A holder that is stopped for longer than
    the ttl (a pause, a slow network) still believes in its lock; a Redis that restarts or fails over may
    forget it. So guard efficiency with it, and guard correctness in Postgres, by a constraint or a row lock.
    It is not fair, and not re-entrant.
    """

    def __init__(self, link: RedisLink, name: str, ttl: float) -> None:
        self.name = name
        self._link = link
        self._key = f"{link.prefix}lock:{name}"
        self._milliseconds = max(1, int(ttl * 1000))
        self._token = ""

    async def acquire(self, wait: float = 0) -> bool:
        """Try until `wait` seconds have passed; return whether the lock is held now."""
        started = time.monotonic()
        token = token_hex(16)
        pause, acquired = SHORTEST_PAUSE, False
        while True:
            # Should the answer to a successful try be lost, the lock stays held by nobody until its ttl.
            with suppress(Unavailable):
                acquired = bool(
                    await self._link.call(
                        "lock", lambda client: client.set(self._key, token, nx=True, px=self._milliseconds)
                    )
                )
            left = started + wait - time.monotonic()
            if acquired or left <= 0:
                break
            await asyncio.sleep(min(left, pause * random.uniform(0.5, 1)))  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE)
        self._token = token if acquired else ""
        waits = self._link.metrics.lock_waits.labels(self.name, "acquired" if acquired else "given up")
        waits.observe(time.monotonic() - started)
        return acquired

    async def extend(self) -> bool:
        """Start the ttl again; False means that the lock is, or may be, another's: stop the work."""
        return await self._if_owned("lock_extend", EXTEND_IF_OWNED, str(self._milliseconds))

    async def release(self) -> bool:
        """Give the lock up; False means that it had expired before, or that Redis is away."""
        released = await self._if_owned("lock_release", RELEASE_IF_OWNED)
        self._token = ""
        return released

    @asynccontextmanager
    async def held(self, wait: float = 0) -> AsyncIterator["Lock"]:
        """Hold the lock for a block, or raise NotAcquired; the block extends it if it takes longer."""
        if not await self.acquire(wait):
            raise NotAcquired(self.name)
        try:
            yield self
        finally:
            await self.release()

    async def _if_owned(self, operation: str, script: str, *arguments: str) -> bool:
        if not self._token:
            return False
        with suppress(Unavailable):
            answer = await self._link.call(
                operation,
                lambda client: client.eval(script, 1, self._key, self._token, *arguments),
            )
            return bool(answer)
        return False
