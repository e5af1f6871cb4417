"""Redis client of one worker: a bounded pool, short timeouts and a circuit breaker."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from secrets import token_hex
from types import TracebackType
from typing import Any, Final, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, RedisError

from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT_TICKS: Final = 20
LATE_TICK: Final = 0.1
# Uses each command that the cache writes with: a Redis that only reads, or a user that may not remove, fails.
PROVE_WRITES: Final = """
redis.call('SET', KEYS[2], '')
redis.call('UNLINK', KEYS[2])
local previous = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return previous
"""
PROOF_MILLISECONDS: Final = 600_000


class Unavailable(Exception):  # noqa: N818  (a state, not a fault of the caller)
    """A Redis command failed, or the circuit breaker is open."""


class LoopTimeout:
    """A timeout that measures the server rather than this worker's event loop.

    A busy loop reads a response late, which is no fault of the server. So the timeout passes in ticks, and
    a tick that the loop runs late counts a tenth.
    """

    def __init__(self, seconds: float) -> None:
        self._tick_seconds = seconds / TIMEOUT_TICKS
        self._ticks = 0.0
        self._timeout = asyncio.timeout(None)
        self._handle: asyncio.TimerHandle

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._schedule()

    def _schedule(self) -> None:
        self._handle = self._loop.call_later(self._tick_seconds, self._tick, time.monotonic())

    def _tick(self, since: float) -> None:
        self._ticks += 1 if time.monotonic() - since < 1.5 * self._tick_seconds else LATE_TICK
        if self._ticks < TIMEOUT_TICKS:
            self._schedule()
        else:
            self._timeout.reschedule(self._loop.time())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        await self._timeout.__aexit__(kind, error, trace)


class Pool(BlockingConnectionPool):
    """A pool whose connections all lead to one Redis process, whose run id is `server`.

    Another process may hold older data: Redis restarted from a snapshot, or a replica was promoted.
    """

    server: str = ""
    renewals: int = 0

    def renew(self) -> None:
        """Replace each connection at its next use: after a failure they may all be dead."""
        self.renewals += 1

    async def ensure_connection(self, connection: Any) -> None:
        """Connect, also if the connection is from before `renew` or leads to an earlier process."""
        if connection.is_connected and connection.origin != (self.server, self.renewals):
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)

    async def identify(self, connection: Any) -> None:
        """Authenticate a new connection and ask for the run id of its process."""
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        lines = (await connection.read_response()).decode().splitlines()
        (self.server,) = (line[7:] for line in lines if line.startswith("run_id:"))
        connection.origin = (self.server, self.renewals)


def create_client(settings: Settings) -> Redis | None:
    """Return a client without timeouts and retries of its own, or None without REDIS_URL."""
    if not settings.redis_url:
        return None
    arguments: dict[str, Any] = {
        "username": settings.redis_username,
        "password": settings.redis_password.get_secret_value() if settings.redis_password else None,
        "max_connections": settings.redis_max_connections,
        "timeout": None,  # RedisLink limits the commands
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.redis_url.startswith("rediss://") and settings.redis_ssl_ca:
        arguments |= {"ssl_ca_certs": str(settings.redis_ssl_ca), "ssl_check_hostname": True}
    pool = Pool.from_url(settings.redis_url, **arguments)
    pool.connection_kwargs["redis_connect_func"] = pool.identify
    return Redis.from_pool(pool)


class RedisLink:
    """Runs Redis commands behind a circuit breaker; any failure of Redis becomes Unavailable.

    A failure opens the breaker, so an outage costs one timeout, not one per request. A background task
    then probes Redis: at once, since a worker that was suspended sees timeouts although Redis is well, and
    after that every `redis_retry_after` seconds. The probe writes, because a Redis that answers reads may
    refuse writes. A successful probe (half-open) closes the breaker.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.client = create_client(settings)
        self.prefix = settings.redis_key_prefix
        self.metrics = metrics
        # Runs after a successful probe, before the breaker closes; gets whether Redis has older data.
        self.on_recovery: Callable[[Redis, bool], Awaitable[None]] | None = None
        self._pool: Any = self.client.connection_pool if self.client else None
        self._timeout = settings.redis_timeout
        self._retry_after = settings.redis_retry_after
        self._slots = asyncio.Semaphore(settings.redis_max_connections)
        self._probe: asyncio.Task[None] | None = None
        self._first_probe_done = asyncio.Event()
        self._proof_key = f"{self.prefix}proof:{token_hex(8)}"
        self._proofs: set[bytes] = set()
        self._proof_server = ""
        self._proving = asyncio.Lock()
        metrics.cache_up.set(1 if self.client else 0)

    @property
    def available(self) -> bool:
        """Whether Redis is configured and the breaker is closed."""
        return self.client is not None and self._probe is None

    @property
    def server(self) -> str:
        """The run id of the Redis process, or "" before the first connection."""
        return str(self._pool.server)

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
        # Not the pool's own queue: its waiters would not notice that the breaker has opened.
        async with self._slots:
            if self._probe:
                raise Unavailable
            started, server = time.monotonic(), self.server
            try:
                result = await self.within_timeout(command(self.client))
                if server not in ("", self.server):
                    raise RedisConnectionError("Another Redis process answers")
                return result
            except DataError:  # a value of the wrong type: Redis has not been asked
                raise
            except (RedisError, OSError, TimeoutError) as error:
                self._open(operation, self.client, error)
                raise Unavailable from error
            finally:
                self.metrics.cache_durations.labels(operation).observe(time.monotonic() - started)

    def _open(self, operation: str, client: Redis, error: Exception) -> None:
        self.metrics.cache.labels(operation, "error").inc()
        if self._probe is None:
            fields = {"operation": operation, "error": f"{type(error).__name__}: {error}"}
            logger.warning("Redis failed, circuit breaker open", extra=fields)
            self.metrics.cache_up.set(0)
            self._first_probe_done.clear()
            self._pool.renew()
            self._probe = asyncio.create_task(self._probe_until_closed(client))

    async def within_timeout(self, command: Awaitable[T]) -> T:
        """Await a command for REDIS_TIMEOUT at most."""
        async with LoopTimeout(self._timeout):
            return await command

    async def _probe_until_closed(self, client: Redis) -> None:
        while True:
            try:
                regressed = await self.within_timeout(self._prove(client))
                if self.on_recovery:
                    await self.on_recovery(client, regressed)
                break
            except Exception:  # any exception: if this task ended, the breaker would stay open
                self.metrics.cache.labels("probe", "error").inc()
            finally:
                self._first_probe_done.set()
            await asyncio.sleep(self._retry_after)
        self._probe = None
        logger.info("Redis recovered, circuit breaker closed")

    async def _prove(self, client: Redis) -> bool:
        """Write, and return whether Redis has older data than this worker's last proof."""
        async with self._proving:
            token = token_hex(8).encode()
            self._proofs.add(token)  # Redis may store it although this command fails
            keys = (self._proof_key, f"{self._proof_key}:removed")
            found = await client.eval(PROVE_WRITES, 2, *keys, token, PROOF_MILLISECONDS)
            # An evicted proof is no sign of older data; another process has keys of its own.
            regressed = found is not None and self._proof_server == self.server and found not in self._proofs
            self._proofs, self._proof_server = {token}, self.server
            return regressed

    async def check(self) -> bool:
        """Return whether Redis accepts writes now."""
        try:
            regressed = await self.call("check", self._prove)
        except Unavailable:
            return False
        if regressed and self.client and self.on_recovery:
            await self.on_recovery(self.client, regressed)
        return True

    async def aclose(self) -> None:
        if self._probe:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        if self.client is not None:
            await self.client.aclose()
