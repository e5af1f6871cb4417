"""Read-through cache in Redis: exact invalidation, single-flight loads (stampede protection)."""

import asyncio
import hashlib
import inspect
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import wraps
from secrets import token_hex
from typing import Any, Concatenate, Final, ParamSpec

import orjson
from fastapi import HTTPException
from redis.asyncio import Redis

from app.epoch import POLL_SECONDS, Epoch
from app.redis_link import RedisLink, Unavailable

logger = logging.getLogger(__name__)

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
START_SECONDS: Final = 3.0
CLOSE_SECONDS: Final = 1.0
MAX_ORPHANS: Final = 10_000
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

    A removal that fails suspends the cache on every worker, see Epoch. The epoch and the run id of the
    Redis process are part of every key: values from before a suspension, a restart from a snapshot or a
    failover are unreachable. A stale value can live until its ttl in two cases: the worker is killed
    between its commit and the removal, or a commit that was reported as failed becomes visible later.
    """

    def __init__(self, link: RedisLink, epoch: Epoch, ttl: float) -> None:
        self._link = link
        self._epoch = epoch
        self._ttl = ttl
        self._prefix = f"{link.prefix}cache:"
        self._leases: dict[str, Lease] = {}
        self._batch: dict[str, None] = {}
        self._batch_task: asyncio.Task[dict[str, bytes | None]] | None = None
        self._batches: set[asyncio.Task[dict[str, bytes | None]]] = set()
        self._orphans: set[str] = set()  # names of leases that may stand without a holder
        self._suspending: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._refreshed, self._closing = asyncio.Event(), asyncio.Event()
        self._unremoved = self._poll_failed = False
        link.on_recovery = self._recover

    @property
    def enabled(self) -> bool:
        """Whether Redis is configured."""
        return self._link.client is not None

    async def start(self) -> None:
        """Let the first requests use the cache, unless Redis or Postgres is slow or away."""
        if self.enabled:
            self._watching = asyncio.create_task(self._watch())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._refreshed.wait(), START_SECONDS)

    async def _watch(self) -> None:
        """Keep the epoch known, prove that Redis accepts writes, and prolong a suspension."""
        while not self._closing.is_set():
            try:
                await self.refresh()
            except Exception:  # any exception: if this task ended, the cache would never be used again
                logger.exception("A periodic task failed")
            self._refreshed.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), POLL_SECONDS)

    async def refresh(self) -> bool:
        """Return whether cached values are used, after asking Redis and Postgres."""
        accepts_writes, polled = await asyncio.gather(
            self._link.check(), self._epoch.poll(), return_exceptions=True
        )
        failed = isinstance(polled, Exception)
        if failed and not self._poll_failed:
            logger.warning("Cache epoch unknown", extra={"error": type(polled).__name__})
        self._poll_failed = failed
        if self._unremoved and not self._link.available:
            self._start_suspending()  # so that few writes wait for a new suspension
        else:
            self._unremoved = False
        usable = accepts_writes is True and self._epoch.trusted
        self._link.metrics.cache_up.set(usable)
        return usable

    async def fetch(self, key: str, load: Loader, ttl: float | None = None) -> bytes | None:
        """Return the cached value of `key`, or load and store it for `ttl` seconds; None is never stored.

        The load may run in another task: it must not depend on a transaction around this call.
        """
        if self._link.client is None:
            return await load()
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            if not self._epoch.trusted:
                raise Unavailable
            if not self._link.server:
                await self._link.call("identify", lambda client: client.ping())
        except Unavailable:
            self._count("bypass")
            return await load()
        name = self._name(key)
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

    def _name(self, key: str) -> str:
        return f"{self._prefix}{self._epoch.number}:{self._link.server}:{key}"

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
                self._orphans.add(name)  # Redis may have set it before the failure
            lease.loading = True
            value = await load()
            return True, value
        finally:
            if lease.loading:  # an empty value releases the lease
                lifetime = int(ttl * 1000 * random.uniform(0.9, 1.1))  # noqa: S311
                arguments = (name, lease.token, value or b"", lifetime)
                try:
                    await self._link.call(
                        "store", lambda client: client.eval(STORE_UNDER_LEASE, 1, *arguments)
                    )
                except Unavailable:
                    self._orphans.add(name)
            if self._leases.get(name) is lease:
                del self._leases[name]

    async def _get(self, name: str) -> bytes | None:
        """Read a key; reads of one turn of the event loop share one MGET."""
        self._batch[name] = None
        if self._batch_task is None:
            self._batch_task = asyncio.create_task(self._get_batch())
            self._batches.add(self._batch_task)
            self._batch_task.add_done_callback(self._batches.discard)
        return (await asyncio.shield(self._batch_task))[name]

    async def _get_batch(self) -> dict[str, bytes | None]:
        names, self._batch, self._batch_task = list(self._batch), {}, None
        values: list[Any] = await self._link.call("get", lambda client: client.mget(names))
        return dict(zip(names, values, strict=True))

    async def invalidate(self, *keys: str, wait: bool = True) -> None:
        """Remove keys after a commit; with `wait`, until no worker uses their values any more.

        After a failure this tries once more, then suspends the cache.
        """
        if not self.enabled or not keys:
            return
        if await self._remove(keys) or await self._remove(keys):
            return
        self._unremoved = True
        suspending = self._start_suspending()
        if wait:
            await asyncio.shield(suspending)

    async def _remove(self, keys: Sequence[str]) -> bool:
        async def remove(client: Redis) -> None:
            if not self._link.server:
                await client.ping()
            await client.unlink(*map(self._name, keys))

        try:
            if not self._epoch.known:
                await self._epoch.poll()
            await self._link.call("invalidate", remove, await_probe=True)
        except (Unavailable, HTTPException):  # of Redis, of Postgres
            return False
        return True

    def _start_suspending(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._epoch.suspend())
        self._suspending.add(task)
        task.add_done_callback(self._suspending.discard)
        return task

    async def clear(self, pattern: str = "*") -> int:
        """Remove every key that matches, such as `Key.pattern`, without blocking Redis; return their number.

        Raises Unavailable if Redis fails.
        """
        cursor, removed = -1, 0
        glob = f"{_escape_glob(self._prefix)}*:*:{pattern}"

        async def remove(client: Redis) -> None:
            nonlocal cursor, removed
            cursor, names = await client.scan(max(cursor, 0), glob, 1000)
            if names:
                removed += await client.unlink(*names)

        while cursor:
            await self._link.call("clear", remove)
        return removed

    async def _recover(self, client: Redis, regressed: bool) -> None:
        """Make unreachable what Redis should not have, before the circuit breaker closes."""
        if regressed:
            await self._epoch.suspend()
        if self._orphans:
            orphans = list(self._orphans)[:MAX_ORPHANS]
            await self._link.within_timeout(client.unlink(*orphans))
            self._orphans.clear()

    async def aclose(self) -> None:
        self._closing.set()
        # A cancelled command would lose its connection. Loads and reads go on when their readers disconnect.
        tasks: set[asyncio.Task[Any]] = {*self._batches, *(lease.task for lease in self._leases.values())}
        tasks |= {self._watching} if self._watching else set()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        tasks |= self._suspending
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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

        async def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> bytes | None:
            value: object = await method(self, *args, **kwargs)
            if value is None or isinstance(value, bytes):
                return value
            raise TypeError(
                f"{method.__qualname__} is cached: it must return JSON as bytes, not {type(value).__name__}"
            )

        @wraps(method)
        async def read(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> bytes | None:
            if skip(*args, **kwargs):
                return await call(self, *args, **kwargs)
            values = [
                args[position] if position < len(args) else kwargs.get(name, default)
                for position, name, default in positions
            ]
            store: Cache = self.cache
            return await store.fetch(key(*values), lambda: call(self, *args, **kwargs), ttl)

        return read

    return decorate
