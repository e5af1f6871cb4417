"""Cached reads in Redis that a write removes for certain, and that cost nothing while Redis is away."""

import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from secrets import token_hex
from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MaxConnectionsError, RedisError

from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger(__name__)

LEASE_MARK: Final = b"~"
# Longer than a read may take: statement timeout, waiting for a connection and Redis together.
LEASE_MILLISECONDS: Final = 10_000
STORE_UNDER_LEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
"""
MOST_MISSED_KEYS: Final = 10_000


class Unavailable(Exception):  # noqa: N818  (a state, not a fault of the caller)
    """Redis failed, or is not being asked because it failed a moment ago."""


class Breaker:
    """Lets calls through until one fails, then one in every `retry_after` seconds until one succeeds."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        self.closed = True
        self._next_try = 0.0

    def allows(self) -> bool:
        """Whether this call may go to Redis; in the open state that makes it the probe."""
        if self.closed:
            return True
        now = time.monotonic()
        if now < self._next_try:
            return False
        self._next_try = now + self.retry_after
        return True

    def failed(self) -> None:
        """Stop calls for a while."""
        self.closed = False
        self._next_try = time.monotonic() + self.retry_after


def create_client(settings: Settings) -> Redis | None:
    """Return a client with short timeouts and no retries of its own, or None without REDIS_URL."""
    if not settings.redis_url:
        return None
    arguments: dict[str, Any] = {
        "username": settings.redis_username,
        "password": settings.redis_password.get_secret_value() if settings.redis_password else None,
        "max_connections": settings.redis_max_connections,
        "socket_timeout": settings.redis_timeout,
        "socket_connect_timeout": settings.redis_timeout,
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.redis_url.startswith("rediss://") and settings.redis_ssl_ca:
        arguments |= {"ssl_ca_certs": str(settings.redis_ssl_ca), "ssl_check_hostname": True}
    pool: ConnectionPool = ConnectionPool.from_url(settings.redis_url, **arguments)
    return Redis.from_pool(pool)


class Cache:
    """Read-through cache of JSON bytes.

    A reader that finds nothing takes a lease on the key, reads the source and stores the result only if
    the lease is still there. A writer removes the key, and the lease with it, after its commit: so a value
    read before the commit can never be stored after it. Should a worker die between commit and removal,
    the old value lives until its ttl.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._client = create_client(settings)
        self._prefix = settings.redis_key_prefix
        self._ttl_milliseconds = settings.cache_ttl * 1000
        self._metrics = metrics
        self._breaker = Breaker(settings.redis_retry_after)
        self._missed: set[str] = set()
        self._store = self._client.register_script(STORE_UNDER_LEASE) if self._client else None
        metrics.cache_up.set(1 if self._client else 0)

    @property
    def enabled(self) -> bool:
        """Whether a Redis is configured."""
        return self._client is not None

    async def fetch(self, key: str, load: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        """Return the cached value of `key`, or load and store it; None is passed on, never stored."""
        client = self._client
        if client is None:
            return await load()
        name = self._prefix + key
        try:
            found = await self._call("get", lambda: client.get(name))
        except Unavailable:
            self._metrics.cache.labels("read", "bypass").inc()
            return await load()
        if found is not None and not found.startswith(LEASE_MARK):
            self._metrics.cache.labels("read", "hit").inc()
            return bytes(found)
        self._metrics.cache.labels("read", "miss").inc()
        if found is not None:  # somebody else is loading it
            return await load()
        return await self._load_under_lease(client, name, load)

    async def _load_under_lease(
        self, client: Redis, name: str, load: Callable[[], Awaitable[bytes | None]]
    ) -> bytes | None:
        lease = LEASE_MARK + token_hex(8).encode()
        try:
            leased = await self._call(
                "lease", lambda: client.set(name, lease, nx=True, px=LEASE_MILLISECONDS)
            )
        except Unavailable:
            leased = False
        value = await load()
        store = self._store
        if leased and value is not None and store is not None:
            lifetime = int(self._ttl_milliseconds * random.uniform(0.9, 1.1))  # noqa: S311
            with suppress(Unavailable):
                await self._call("store", lambda: store([name], [lease, value, lifetime]))
        return value

    async def invalidate(self, *keys: str) -> None:
        """Remove keys after a commit; what Redis could not be told is told before it is used again."""
        client = self._client
        if client is None:
            return
        names = [self._prefix + key for key in keys]
        try:
            await self._call("invalidate", lambda: client.unlink(*names))
        except Unavailable:
            self._missed.update(names)

    async def ping(self) -> bool:
        """Whether Redis answers now; also how an idle worker notices that it is back."""
        client = self._client
        if client is None:
            return False
        try:
            await self._call("ping", client.ping)
        except Unavailable:
            return False
        return True

    async def close(self) -> None:
        """Close every connection."""
        if self._client is not None:
            await self._client.aclose()

    async def _call(self, operation: str, command: Callable[[], Awaitable[Any]]) -> Any:
        """Run one command under the breaker; any failure of Redis becomes Unavailable."""
        client = self._client
        if client is None or not self._breaker.allows():
            raise Unavailable
        started = time.perf_counter()
        try:
            if not self._breaker.closed:
                await self._recover(client)
            return await command()
        except MaxConnectionsError as error:  # busy, not broken
            self._metrics.cache.labels(operation, "error").inc()
            raise Unavailable from error
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.cache.labels(operation, "error").inc()
            if self._breaker.closed:
                logger.warning("Redis failed, serving without cache", extra={"error": type(error).__name__})
            self._breaker.failed()
            self._metrics.cache_up.set(0)
            raise Unavailable from error
        finally:
            self._metrics.cache_durations.labels(operation).observe(time.perf_counter() - started)

    async def _recover(self, client: Redis) -> None:
        """Make good the removals that failed, then use Redis again."""
        missed = list(self._missed)
        if len(missed) > MOST_MISSED_KEYS:
            missed = [name async for name in client.scan_iter(match=f"{self._prefix}*", count=1000)]
        for start in range(0, len(missed), 500):
            await client.unlink(*missed[start : start + 500])
        await client.ping()
        self._missed.clear()
        self._breaker.closed = True
        self._metrics.cache_up.set(1)
        logger.info("Redis is back", extra={"removed": len(missed)})
