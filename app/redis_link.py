"""Redis client of one worker: a bounded pool, short timeouts and a circuit breaker."""

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
    """A Redis command failed, or the circuit breaker is open."""


def create_client(settings: Settings) -> Redis | None:
    """Return a client with short timeouts and without retries, or None without REDIS_URL."""
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
    """Runs Redis commands behind a circuit breaker; any failure of Redis becomes Unavailable.

    A failure opens the breaker, so an outage costs one timeout, not one per request. A background task
    then probes Redis with a ping: at once, since a worker that was suspended sees timeouts although Redis
    is well, and after that every `redis_retry_after` seconds. A successful ping (half-open) runs the
    recovery hook; then the breaker closes.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.client = create_client(settings)
        self.prefix = settings.redis_key_prefix
        self.metrics = metrics
        # Runs after a successful probe, before the breaker closes.
        self.on_recovery: Callable[[Redis], Awaitable[None]] | None = None
        self._retry_after = settings.redis_retry_after
        self._probe: asyncio.Task[None] | None = None
        self._first_probe_done = asyncio.Event()
        metrics.cache_up.set(1 if self.client else 0)

    @property
    def available(self) -> bool:
        """Whether Redis is configured and the breaker is closed."""
        return self.client is not None and self._probe is None

    async def call(
        self, operation: str, command: Callable[[Redis], Awaitable[T]], *, await_probe: bool = False
    ) -> T:
        """Run one command, or raise Unavailable.

        With `await_probe`, an open breaker is given the time of its first probe before it refuses.
        """
        if await_probe and self._probe:
            await self._first_probe_done.wait()
        if self.client is None or self._probe:
            raise Unavailable
        started = time.monotonic()
        try:
            return await command(self.client)
        except (RedisError, OSError, TimeoutError) as error:
            self.metrics.cache.labels(operation, "error").inc()
            if self._probe is None:
                logger.warning("Redis failed, circuit breaker open", extra={"error": type(error).__name__})
                self.metrics.cache_up.set(0)
                self._first_probe_done.clear()
                self._probe = asyncio.create_task(self._probe_until_closed(self.client))
            raise Unavailable from error
        finally:
            self.metrics.cache_durations.labels(operation).observe(time.monotonic() - started)

    async def _probe_until_closed(self, client: Redis) -> None:
        while True:
            try:
                await client.ping()
                if self.on_recovery:
                    await self.on_recovery(client)
                break
            except Exception:  # any exception: if this task ended, the breaker would stay open
                self.metrics.cache.labels("ping", "error").inc()
            finally:
                self._first_probe_done.set()
            await asyncio.sleep(self._retry_after)
        # No await since the hook's last check for work: nothing can be queued in between.
        self._probe = None
        self.metrics.cache_up.set(1)
        logger.info("Redis recovered, circuit breaker closed")

    async def ping(self) -> bool:
        """Return whether Redis answers now."""
        try:
            return bool(await self.call("ping", lambda client: client.ping()))
        except Unavailable:
            return False

    async def aclose(self) -> None:
        if self._probe:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        if self.client is not None:
            await self.client.aclose()
