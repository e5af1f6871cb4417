"""Cached reads in Redis that a write removes for certain, loaded once however many ask for them."""

import asyncio
import hashlib
import inspect
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from secrets import token_hex
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import orjson
from redis.asyncio import Redis

from app.redis_link import RedisLink, Unavailable

LEASE_MARK: Final = b"~"
# Longer than a read may take: statement timeout, waiting for a connection and Redis together.
LEASE_MILLISECONDS: Final = 10_000
# How long a reader waits for another worker's load before it takes the lease over: that worker may be gone.
WAIT_SECONDS: Final = 2.0
TAKE_OVER: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
"""
STORE_UNDER_LEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  if ARGV[2] == '' then return redis.call('UNLINK', KEYS[1]) end
  return redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
"""
MOST_MISSED_KEYS: Final = 10_000
LONGEST_KEY: Final = 200
BATCH: Final = 500

Load = Callable[[], Awaitable[bytes | None]]


class Flight:
    """One load of one key under one lease, and everybody on this worker who waits for it."""

    def __init__(self) -> None:
        self.lease = LEASE_MARK + token_hex(8).encode()
        self.loading = False
        self.task: asyncio.Task[tuple[bool, bytes | None]]


class Cache:
    """Read-through cache of JSON bytes.

    A reader that finds nothing takes a lease on the key, reads the source and stores the result only if
    the lease is still there. A writer removes the key, and the lease with it, after its commit: so a value
    read before the commit can never be stored after it. Should a worker die between commit and removal,
    the old value lives until its ttl.

    A source is read once on a miss: readers on the same worker share the flight, readers on others wait for
    the value to appear. Nobody gets what was loaded before a write that ended before the reader came: a
    flight is joined only before its load begins, or while its lease still stands in Redis.
    """

    def __init__(self, link: RedisLink, ttl: float) -> None:
        self._link = link
        self._ttl = ttl
        self._flights: dict[str, Flight] = {}
        self._asked: list[tuple[str, asyncio.Future[bytes | None]]] = []
        self._answers: set[asyncio.Task[None]] = set()
        self._missed: set[str] = set()
        self._missed_patterns: set[str] = set()
        self._store = link.client.register_script(STORE_UNDER_LEASE) if link.client else None
        link.recoveries.append(self._remove_missed)

    async def fetch(self, key: str, load: Load, ttl: float | None = None) -> bytes | None:
        """Return the cached value of `key`, or load and store it; None is passed on, never stored.

        The load may run in a task of its own: it must not depend on a transaction around this call.
        """
        if not self._link.enabled:
            return await load()
        name = self._link.prefix + key
        awaited, deadline, pause, result = b"", 0.0, 0.005, "shared"
        while True:
            try:
                found = await self._get(name)
            except Unavailable:
                self._count("bypass")
                return await load()
            if found is not None and not found.startswith(LEASE_MARK):
                self._count("hit")
                return found
            flight = self._flights.get(name)
            if flight is None or (flight.loading and flight.lease != found):
                if found is not None:  # another worker is loading it
                    if found != awaited:
                        awaited, deadline = found, time.monotonic() + WAIT_SECONDS
                    if time.monotonic() < deadline:
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, 0.05)
                        continue
                flight, result = self._take_off(name, load, ttl or self._ttl, found), "miss"
            # One reader's leaving must not end the flight for the others.
            landed, value = await asyncio.shield(flight.task)
            if landed:
                self._count(result)
                return value

    def _count(self, result: str) -> None:
        self._link.metrics.cache.labels("read", result).inc()

    def _take_off(self, name: str, load: Load, ttl: float, over: bytes | None) -> Flight:
        flight = self._flights[name] = Flight()
        flight.task = asyncio.create_task(self._fly(name, flight, load, ttl, over))
        # Should every reader have left, nobody else would look at a failure.
        flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return flight

    async def _fly(
        self, name: str, flight: Flight, load: Load, ttl: float, over: bytes | None
    ) -> tuple[bool, bytes | None]:
        """Return whether the load was ours to do, and its value."""

        def lease(client: Redis) -> Awaitable[Any]:
            if over is None:
                return client.set(name, flight.lease, nx=True, px=LEASE_MILLISECONDS)
            return client.eval(TAKE_OVER, 1, name, over, flight.lease, str(LEASE_MILLISECONDS))

        value = None
        try:
            try:
                if not await self._link.call("lease", lease):
                    return False, None
            except Unavailable:
                self._missed.add(name)  # Redis may have it all the same
            flight.loading = True
            value = await load()
            return True, value
        finally:
            if flight.loading:  # without a value, the lease is given back
                await self._land(name, flight.lease, value or b"", ttl)
            if self._flights.get(name) is flight:
                del self._flights[name]

    async def _land(self, name: str, lease: bytes, value: bytes, ttl: float) -> None:
        store = self._store
        lifetime = int(ttl * 1000 * random.uniform(0.9, 1.1))  # noqa: S311
        try:
            await self._link.call("store", lambda _: store([name], [lease, value, lifetime]))  # type: ignore[misc]
        except Unavailable:
            self._missed.add(name)  # nobody shall wait for a lease that nobody holds

    async def _get(self, name: str) -> bytes | None:
        """Read a key; what is asked for in one turn of the loop goes to Redis as one command."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()
        self._asked.append((name, future))
        if len(self._asked) == 1:
            loop.call_soon(self._ask)
        return await future

    def _ask(self) -> None:
        asked, self._asked = self._asked, []
        task = asyncio.create_task(self._answer(asked))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, asked: list[tuple[str, asyncio.Future[bytes | None]]]) -> None:
        names = list(dict.fromkeys(name for name, _ in asked))
        found: dict[str, bytes | None] = {}
        failure: Exception | None = None
        try:
            values: list[Any] = await self._link.call("get", lambda client: client.mget(names))
            found = dict(zip(names, values, strict=True))
        except Exception as error:
            failure = error
        for name, future in asked:
            if future.done():  # its reader left
                continue
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(found[name])

    async def invalidate(self, *keys: str) -> None:
        """Remove keys after a commit; what Redis could not be told is told before it is used again."""
        if not self._link.enabled:
            return
        names = [self._link.prefix + key for key in keys]
        try:
            for start in range(0, len(names), BATCH):
                batch = names[start : start + BATCH]
                await self._link.call("invalidate", lambda client, batch=batch: client.unlink(*batch))  # type: ignore[misc]
        except Unavailable:
            self._missed.update(names)

    async def clear(self, pattern: str = "*") -> None:
        """Remove every key that matches, such as `Key.pattern`, without blocking Redis."""
        if not self._link.enabled:
            return
        try:
            await self._link.call("clear", lambda client: self._clear(client, pattern))
        except Unavailable:
            self._missed_patterns.add(pattern)

    async def _clear(self, client: Redis, pattern: str) -> None:
        batch = []
        async for name in client.scan_iter(match=_literally(self._link.prefix) + pattern, count=1000):
            batch.append(name)
            if len(batch) >= BATCH:
                await client.unlink(*batch)
                batch.clear()
        if batch:
            await client.unlink(*batch)

    async def _remove_missed(self, client: Redis) -> None:
        if len(self._missed) > MOST_MISSED_KEYS:
            self._missed_patterns.add("*")
            self._missed.clear()
        for pattern in list(self._missed_patterns):
            await self._clear(client, pattern)
            self._missed_patterns.discard(pattern)
        missed = list(self._missed)
        for start in range(0, len(missed), BATCH):
            await client.unlink(*missed[start : start + BATCH])
        self._missed.difference_update(missed)


class Key:
    """A family of cache keys: a prefix, and the names of the arguments that tell one value from another.

    The same object makes the key that is stored and the key that is removed. Arguments are what JSON can
    hold; anything else, a session say, is refused rather than put into the key by its address.
    """

    def __init__(self, prefix: str, *arguments: str) -> None:
        self.prefix = prefix
        self.arguments = arguments
        self.pattern = f"{_literally(prefix)}:*"

    def __call__(self, **values: Any) -> str:
        """Return the key for these values, the same in every process."""
        if values.keys() != set(self.arguments):
            raise TypeError(f"{self.prefix} needs {', '.join(self.arguments)}")
        ordered = [values[name] for name in self.arguments]
        text = orjson.dumps(ordered, option=orjson.OPT_SORT_KEYS)[1:-1]
        if len(text) > LONGEST_KEY:
            text = b"#" + hashlib.sha256(text).hexdigest().encode()
        return f"{self.prefix}:{text.decode()}"


def _literally(text: str) -> str:
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)


class HasCache(Protocol):
    """What `cached` asks of a method's object."""

    @property
    def cache(self) -> Cache: ...


S = TypeVar("S", bound=HasCache)
P = ParamSpec("P")
Method = Callable[Concatenate[S, P], Coroutine[Any, Any, bytes | None]]


def cached(
    key: Key, *, ttl: float | None = None, skip: Callable[..., bool] | None = None
) -> Callable[[Method[S, P]], Method[S, P]]:
    """Cache a method that returns JSON bytes or None, under `key` of its own arguments.

    `skip` gets the arguments too; where it is true, the method runs as if it were not decorated.
    """

    def decorate(method: Method[S, P]) -> Method[S, P]:
        parameters = list(inspect.signature(method).parameters.values())[1:]
        defaults = {parameter.name: parameter.default for parameter in parameters}
        if unknown := set(key.arguments) - set(defaults):
            raise TypeError(f"the method has no argument {', '.join(sorted(unknown))}")
        places = {parameter.name: place for place, parameter in enumerate(parameters)}
        taken = [(name, places[name], defaults[name]) for name in key.arguments]

        @wraps(method)
        async def read(self: S, /, *args: P.args, **kwargs: P.kwargs) -> bytes | None:
            if skip is not None and skip(*args, **kwargs):
                return await method(self, *args, **kwargs)
            values = {
                name: args[place] if place < len(args) else kwargs.get(name, default)
                for name, place, default in taken
            }
            return await self.cache.fetch(key(**values), lambda: method(self, *args, **kwargs), ttl)

        return read

    return decorate
