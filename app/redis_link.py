"""One worker's way to Redis: a bounded pool, short timeouts, and a circuit breaker around every command."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Unavailable(Exception):  # noqa: N818  (a state, not a fault of the caller)
    """Redis failed, or is not being asked because it failed a moment ago."""


def create_client(settings: Settings) -> Redis | None:
    """Return a client with short timeouts and no retries of its own, or None without REDIS_URL."""
    if not settings.redis_url:
        return None
    arguments: dict[str, Any] = {
        "username": settings.redis_username,
        "password": settings.redis_password.get_secret_value() if settings.redis_password else None,
        "max_connections": settings.redis_max_connections,
        "timeout": settings.redis_timeout,  # for a free connection
        "socket_timeout": settings.redis_timeout,
        "socket_connect_timeout": settings.redis_timeout,
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.redis_url.startswith("rediss://") and settings.redis_ssl_ca:
        arguments |= {"ssl_ca_certs": str(settings.redis_ssl_ca), "ssl_check_hostname": True}
    return Redis.from_pool(BlockingConnectionPool.from_url(settings.redis_url, **arguments))


class RedisLink:
    """Runs commands; any failure of Redis becomes Unavailable, and costs one timeout, not one per request.

    After a failure Redis is not used until it has answered a ping, which nobody waits for. The first one goes
    out at once, as a worker that stood still for a moment takes Redis for silent; others at a fixed beat.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.client = create_client(settings)
        self.prefix = settings.redis_key_prefix
        self.metrics = metrics
        # Run when Redis answers again, before it is used.
        self.recovery: Callable[[Redis], Awaitable[None]] | None = None
        self._retry_after = settings.redis_retry_after
        self._return: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        metrics.cache_up.set(1 if self.client else 0)

    async def call(
        self, operation: str, command: Callable[[Redis], Awaitable[T]], *, patient: bool = False
    ) -> T:
        """Run one command under the breaker; a patient one waits for the first ping after a failure."""
        if patient and self._return:
            await self._asked.wait()
        if self.client is None or self._return:
            raise Unavailable
        started = time.monotonic()
        try:
            return await command(self.client)
        except (RedisError, OSError, TimeoutError) as error:
            self.metrics.cache.labels(operation, "error").inc()
            if self._return is None:
                logger.warning("Redis failed, serving without it", extra={"error": type(error).__name__})
                self.metrics.cache_up.set(0)
                self._asked.clear()
                self._return = asyncio.create_task(self._come_back(self.client))
            raise Unavailable from error
        finally:
            self.metrics.cache_durations.labels(operation).observe(time.monotonic() - started)

    async def _come_back(self, client: Redis) -> None:
        while True:
            try:
                await client.ping()
                if self.recovery:
                    await self.recovery(client)
                break
            except Exception:  # whatever it is, nothing else would ask again
                self.metrics.cache.labels("ping", "error").inc()
            finally:
                self._asked.set()
            await asyncio.sleep(self._retry_after)
        # In the same turn of the loop as the recovery's last look at what there is to do.
        self._return = None
        self.metrics.cache_up.set(1)
        logger.info("Redis is back")

    async def ping(self) -> bool:
        """Whether Redis answers now."""
        try:
            return bool(await self.call("ping", lambda client: client.ping()))
        except Unavailable:
            return False

    async def aclose(self) -> None:
        if self._return:
            self._return.cancel()
            await asyncio.wait([self._return])
        if self.client is not None:
            await self.client.aclose()
