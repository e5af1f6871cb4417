"""Read-through cache in Redis: exact invalidation, single-flight loads (stampede protection)."""

import asyncio
import hashlib
import inspect
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from secrets import token_hex
from typing import Any, Concatenate, Final, ParamSpec

import orjson
from redis.asyncio import Redis

from app.redis_link import RedisLink, Unavailable

LEASE_MARK: Final = b"~"
# Longer than the slowest read: statement timeout, wait for a connection and Redis together.
LEASE_MILLISECONDS: Final = 10_000
# A reader waits this long for another worker's load, then loads itself: that worker may have died.
WAIT_SECONDS: Final = 2.0
STORE_UNDER_LEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  if ARGV[2] == '' then return redis.call('UNLINK', KEYS[1]) end
  return redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
"""
MAX_QUEUED_REMOVALS: Final = 10_000
MAX_KEY_BYTES: Final = 200

Loader = Callable[[], Awaitable[bytes | None]]


class Lease:
    """One load of one key on this worker, shared by its readers (single-flight)."""

    def __init__(self) -> None:
        self.token = LEASE_MARK + token_hex(8).encode()
        self.loading = False
        self.task: asyncio.Task[tuple[bool, bytes | None]]


class Cache:
    """Read-through cache of JSON bytes.

    On a miss, a reader sets a lease on the key, reads the source, and stores the value only if the lease
    still stands. A writer removes the key, and any lease with it, after its commit. A value read before a
    commit can therefore never be stored after it.

    Single-flight: readers on one worker share one load. Readers on other workers wait up to WAIT_SECONDS
    for the value, then load themselves. A reader never gets a value whose load began before a write that
    ended before the reader came: it joins only a load that has not begun or whose lease still stands.

    If Redis is down, removals are queued and run before the circuit breaker closes. A stale value can live
    until its ttl in two cases: the worker dies with queued removals, or a commit that was reported as
    failed becomes visible after the removal.
    """

    def __init__(self, link: RedisLink, ttl: float) -> None:
        self._link = link
        self._ttl = ttl
        self._prefix = f"{link.prefix}cache:"
        self._leases: dict[str, Lease] = {}
        self._batch: dict[str, None] = {}
        self._batch_task: asyncio.Task[dict[str, bytes | None]] | None = None
        self._queued_removals: set[str] = set()
        self._queued_patterns: set[str] = set()
        link.on_recovery = self._run_queued_removals

    async def fetch(self, key: str, load: Loader, ttl: float | None = None) -> bytes | None:
        """Return the cached value of `key`, or load and store it for `ttl` seconds; None is never stored.

        The load may run in another task: it must not depend on a transaction around this call.
        """
        if self._link.client is None:
            return await load()
        name = self._prefix + key
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                found = await self._get(name)
            except Unavailable:
                self._count("bypass")
                return await load()
            if found is not None and not found.startswith(LEASE_MARK):
                self._count("hit")
                return found
            lease, result = self._leases.get(name), "shared"
            if lease is None or (lease.loading and lease.token != found):
                if found is not None and time.monotonic() < deadline:  # another worker holds the lease
                    await asyncio.sleep(random.uniform(0.005, 0.02))  # noqa: S311
                    continue
                lease, result = self._start_load(name, load, ttl or self._ttl, found is not None), "miss"
            joined_late = lease.loading
            # A reader that disconnects must not cancel the load for the others.
            loaded, value = await asyncio.shield(lease.task)
            # A missing row may have been created since the load began, and a creation removes no key.
            if loaded and not (joined_late and value is None):
                self._count(result)
                return value

    def _count(self, result: str) -> None:
        self._link.metrics.cache.labels("read", result).inc()

    def _start_load(self, name: str, load: Loader, ttl: float, take_over: bool) -> Lease:
        lease = self._leases[name] = Lease()
        lease.task = asyncio.create_task(self._load_under_lease(name, lease, load, ttl, take_over))
        # If every reader has disconnected, this retrieves the exception.
        lease.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return lease

    async def _load_under_lease(
        self, name: str, lease: Lease, load: Loader, ttl: float, take_over: bool
    ) -> tuple[bool, bytes | None]:
        """Return whether this worker got the lease, and the loaded value."""
        value = None
        try:
            try:
                if not await self._link.call(
                    "lease",
                    lambda client: client.set(name, lease.token, nx=not take_over, px=LEASE_MILLISECONDS),
                ):
                    return False, None
            except Unavailable:
                self._queued_removals.add(name)  # Redis may have set it before the failure
            lease.loading = True
            value = await load()
            return True, value
        finally:
            if lease.loading:  # an empty value releases the lease
                lifetime = int(ttl * 1000 * random.uniform(0.9, 1.1))  # noqa: S311
                arguments = (name, lease.token, value or b"", lifetime)
                # If this fails, the removal is queued: no reader may wait for a lease without a holder.
                await self._run_or_queue(
                    "store", lambda client: client.eval(STORE_UNDER_LEASE, 1, *arguments), name
                )
            if self._leases.get(name) is lease:
                del self._leases[name]

    async def _get(self, name: str) -> bytes | None:
        """Read a key; reads of one turn of the event loop share one MGET."""
        self._batch[name] = None
        if self._batch_task is None:
            self._batch_task = asyncio.create_task(self._get_batch())
        return (await asyncio.shield(self._batch_task))[name]

    async def _get_batch(self) -> dict[str, bytes | None]:
        names, self._batch, self._batch_task = list(self._batch), {}, None
        values: list[Any] = await self._link.call("get", lambda client: client.mget(names))
        return dict(zip(names, values, strict=True))

    async def invalidate(self, *keys: str) -> None:
        """Remove keys after a commit; if Redis is down, before the circuit breaker closes."""
        if self._link.client is None or not keys:
            return
        names = [self._prefix + key for key in keys]
        await self._run_or_queue("invalidate", lambda client: client.unlink(*names), *names, await_probe=True)

    async def _run_or_queue(
        self,
        operation: str,
        command: Callable[[Redis], Awaitable[Any]],
        *names: str,
        await_probe: bool = False,
    ) -> None:
        """Run a command; if Redis is unavailable, queue the removal of these names."""
        try:
            await self._link.call(operation, command, await_probe=await_probe)
        except Unavailable:
            self._queued_removals.update(names)
            if len(self._queued_removals) > MAX_QUEUED_REMOVALS:
                self._queued_removals.clear()
                self._queued_patterns.add("*")

    async def clear(self, pattern: str = "*") -> None:
        """Remove every key that matches, such as `Key.pattern`, without blocking Redis."""
        if self._link.client is None:
            return
        try:
            await self._link.call("clear", lambda client: self._clear(client, pattern))
        except Unavailable:
            self._queued_patterns.add(pattern)

    async def _clear(self, client: Redis, pattern: str) -> None:
        cursor: int | None = None
        while cursor != 0:
            cursor, names = await client.scan(cursor or 0, _escape_glob(self._prefix) + pattern, 1000)
            if names:
                await client.unlink(*names)

    async def _run_queued_removals(self, client: Redis) -> None:
        # A loop: writes during the recovery may queue again what was just removed.
        while self._queued_removals or self._queued_patterns:
            names, self._queued_removals = self._queued_removals, set()
            patterns, self._queued_patterns = self._queued_patterns, set()
            try:
                for pattern in patterns:
                    await self._clear(client, pattern)
                if names:
                    await client.unlink(*names)
            except BaseException:
                self._queued_removals |= names
                self._queued_patterns |= patterns
                raise


class Key:
    """A family of cache keys: a prefix and the names of the arguments that identify one value.

    The same object makes the key to store and the key to remove. Arguments must be JSON values: an object
    such as a session raises TypeError instead of entering the key by its address.
    """

    def __init__(self, prefix: str, *arguments: str) -> None:
        self.prefix = prefix
        self.arguments = arguments
        self.pattern = f"{_escape_glob(prefix)}:*"

    def __call__(self, *values: Any) -> str:
        """Return the key for these argument values; it is the same in every process."""
        if len(values) != len(self.arguments):
            raise TypeError(f"{self.prefix} needs {', '.join(self.arguments)}")
        text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)[1:-1]
        if len(text) > MAX_KEY_BYTES:
            text = b"#" + hashlib.sha256(text).hexdigest().encode()
        return f"{self.prefix}:{text.decode()}"


def _escape_glob(text: str) -> str:
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)


P = ParamSpec("P")
Method = Callable[Concatenate[Any, P], Coroutine[Any, Any, bytes | None]]


def cached(
    key: Key, *, ttl: float | None = None, skip: Callable[..., bool] = lambda *_, **__: False
) -> Callable[[Method[P]], Method[P]]:
    """Cache the JSON bytes that a method returns, in its object's `cache`, under `key` of its arguments.

    `ttl` is in seconds; the default is the cache's. `skip` gets the method's arguments; if it returns True,
    the call bypasses the cache.
    """

    def decorate(method: Method[P]) -> Method[P]:
        parameters = list(inspect.signature(method).parameters)[1:]
        defaults = {name: p.default for name, p in inspect.signature(method).parameters.items()}
        positions = [(parameters.index(name), name, defaults[name]) for name in key.arguments]

        @wraps(method)
        async def read(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> bytes | None:
            if skip(*args, **kwargs):
                return await method(self, *args, **kwargs)
            values = [
                args[position] if position < len(args) else kwargs.get(name, default)
                for position, name, default in positions
            ]
            store: Cache = self.cache
            return await store.fetch(key(*values), lambda: method(self, *args, **kwargs), ttl)

        return read

    return decorate
