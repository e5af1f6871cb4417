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
from typing import Any, Concatenate, Final, ParamSpec

import orjson
from redis.asyncio import Redis

from app.redis_link import RedisLink, Unavailable

LEASE_MARK: Final = b"~"
# Longer than a read may take: statement timeout, waiting for a connection and Redis together.
LEASE_MILLISECONDS: Final = 10_000
# How long a reader waits for another worker's load before it loads itself: that worker may be gone.
WAIT_SECONDS: Final = 2.0
STORE_UNDER_LEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  if ARGV[2] == '' then return redis.call('UNLINK', KEYS[1]) end
  return redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
"""
MOST_MISSED: Final = 10_000
LONGEST_KEY: Final = 200

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
    read before the commit can never be stored after it. A worker that cannot reach Redis removes what it
    wrote as soon as it can, which it tries every few seconds, and before it uses Redis again; should it die
    before that, an old value that another worker stored lives until its ttl. So does one that was read
    before a commit that failed for its caller and became visible after the removal all the same.

    A source is read once on a miss: readers on the same worker share the flight, readers on others wait for
    the value to appear, for two seconds: a load that takes longer begins again there. Nobody gets what was
    loaded before a write that ended before the reader came: a flight is joined only before its load begins,
    or while its lease still stands in Redis.
    """

    def __init__(self, link: RedisLink, ttl: float) -> None:
        self._link = link
        self._ttl = ttl
        self._prefix = f"{link.prefix}cache:"
        self._flights: dict[str, Flight] = {}
        self._names: dict[str, None] = {}
        self._question: asyncio.Task[dict[str, bytes | None]] | None = None
        self._missed: set[str] = set()
        self._missed_patterns: set[str] = set()
        link.recovery = self._remove_missed

    async def fetch(self, key: str, load: Load, ttl: float | None = None) -> bytes | None:
        """Return the cached value of `key`, or load and store it; None is passed on, never stored.

        The load may run in a task of its own: it must not depend on a transaction around this call.
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
            flight, result = self._flights.get(name), "shared"
            if flight is None or (flight.loading and flight.lease != found):
                if found is not None and time.monotonic() < deadline:  # another worker is loading it
                    await asyncio.sleep(random.uniform(0.005, 0.02))  # noqa: S311
                    continue
                flight, result = self._take_off(name, load, ttl or self._ttl, found is not None), "miss"
            late = flight.loading
            # One reader's leaving must not end the flight for the others.
            landed, value = await asyncio.shield(flight.task)
            # What was not there when the load began may be by now, and its making removed no key.
            if landed and not (late and value is None):
                self._count(result)
                return value

    def _count(self, result: str) -> None:
        self._link.metrics.cache.labels("read", result).inc()

    def _take_off(self, name: str, load: Load, ttl: float, takes_over: bool) -> Flight:
        flight = self._flights[name] = Flight()
        flight.task = asyncio.create_task(self._fly(name, flight, load, ttl, takes_over))
        # Should every reader have left, nobody else would look at a failure.
        flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return flight

    async def _fly(
        self, name: str, flight: Flight, load: Load, ttl: float, takes_over: bool
    ) -> tuple[bool, bytes | None]:
        """Return whether the load was ours to do, and its value."""
        value = None
        try:
            try:
                if not await self._link.call(
                    "lease",
                    lambda client: client.set(name, flight.lease, nx=not takes_over, px=LEASE_MILLISECONDS),
                ):
                    return False, None
            except Unavailable:
                self._missed.add(name)  # Redis may have it all the same
            flight.loading = True
            value = await load()
            return True, value
        finally:
            if flight.loading:  # without a value, the lease is given back
                lifetime = int(ttl * 1000 * random.uniform(0.9, 1.1))  # noqa: S311
                arguments = (name, flight.lease, value or b"", lifetime)
                # Should it stay, nobody shall wait for a lease that nobody holds.
                await self._tell("store", lambda client: client.eval(STORE_UNDER_LEASE, 1, *arguments), name)
            if self._flights.get(name) is flight:
                del self._flights[name]

    async def _get(self, name: str) -> bytes | None:
        """Read a key; what is asked for in one turn of the loop goes to Redis as one command."""
        self._names[name] = None
        if self._question is None:
            self._question = asyncio.create_task(self._ask())
        return (await asyncio.shield(self._question))[name]

    async def _ask(self) -> dict[str, bytes | None]:
        names, self._names, self._question = list(self._names), {}, None
        values: list[Any] = await self._link.call("get", lambda client: client.mget(names))
        return dict(zip(names, values, strict=True))

    async def invalidate(self, *keys: str) -> None:
        """Remove keys after a commit; what Redis could not be told is told before it is used again."""
        if self._link.client is None or not keys:
            return
        names = [self._prefix + key for key in keys]
        await self._tell("invalidate", lambda client: client.unlink(*names), *names, patient=True)

    async def _tell(
        self, operation: str, command: Callable[[Redis], Awaitable[Any]], *names: str, patient: bool = False
    ) -> None:
        """Run a command, or remember to remove these keys before Redis is used again."""
        try:
            await self._link.call(operation, command, patient=patient)
        except Unavailable:
            self._missed.update(names)
            if len(self._missed) > MOST_MISSED:
                self._missed.clear()
                self._missed_patterns.add("*")

    async def clear(self, pattern: str = "*") -> None:
        """Remove every key that matches, such as `Key.pattern`, without blocking Redis."""
        if self._link.client is None:
            return
        try:
            await self._link.call("clear", lambda client: self._clear(client, pattern))
        except Unavailable:
            self._missed_patterns.add(pattern)

    async def _clear(self, client: Redis, pattern: str) -> None:
        cursor: int | None = None
        while cursor != 0:
            cursor, names = await client.scan(cursor or 0, _literally(self._prefix) + pattern, 1000)
            if names:
                await client.unlink(*names)

    async def _remove_missed(self, client: Redis) -> None:
        # Writes go on meanwhile, and may miss what was just removed.
        while self._missed or self._missed_patterns:
            names, self._missed = self._missed, set()
            patterns, self._missed_patterns = self._missed_patterns, set()
            try:
                for pattern in patterns:
                    await self._clear(client, pattern)
                if names:
                    await client.unlink(*names)
            except BaseException:
                self._missed |= names
                self._missed_patterns |= patterns
                raise


class Key:
    """A family of cache keys: a prefix, and the names of the arguments that tell one value from another.

    The same object makes the key that is stored and the key that is removed. Arguments are what JSON can
    hold; anything else, a session say, is refused rather than put into the key by its address.
    """

    def __init__(self, prefix: str, *arguments: str) -> None:
        self.prefix = prefix
        self.arguments = arguments
        self.pattern = f"{_literally(prefix)}:*"

    def __call__(self, *values: Any) -> str:
        """Return the key for these values of the arguments, the same in every process."""
        if len(values) != len(self.arguments):
            raise TypeError(f"{self.prefix} needs {', '.join(self.arguments)}")
        text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)[1:-1]
        if len(text) > LONGEST_KEY:
            text = b"#" + hashlib.sha256(text).hexdigest().encode()
        return f"{self.prefix}:{text.decode()}"


def _literally(text: str) -> str:
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)


P = ParamSpec("P")
Method = Callable[Concatenate[Any, P], Coroutine[Any, Any, bytes | None]]


def cached(
    key: Key, *, ttl: float | None = None, skip: Callable[..., bool] = lambda *_, **__: False
) -> Callable[[Method[P]], Method[P]]:
    """Keep what a method returns, JSON bytes or None, in its object's `cache` under `key` of its arguments.

    `skip` gets the arguments too; where it is true, the method runs as if it were not decorated.
    """

    def decorate(method: Method[P]) -> Method[P]:
        parameters = list(inspect.signature(method).parameters)[1:]
        defaults = {name: p.default for name, p in inspect.signature(method).parameters.items()}
        places = [(parameters.index(name), name, defaults[name]) for name in key.arguments]

        @wraps(method)
        async def read(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> bytes | None:
            if skip(*args, **kwargs):
                return await method(self, *args, **kwargs)
            values = [
                args[place] if place < len(args) else kwargs.get(name, default)
                for place, name, default in places
            ]
            store: Cache = self.cache
            return await store.fetch(key(*values), lambda: method(self, *args, **kwargs), ttl)

        return read

    return decorate
