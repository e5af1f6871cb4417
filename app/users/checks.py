"""The queue of password checks: bounded, and in an order that a flood of guesses does not take over.

A check takes a third of a second of the processor and 64 MiB, so a worker runs one at a time. The waiting
ones are ordered by rank. A low rank may wait only while the queue is short, so there is room for the others.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from enum import IntEnum
from typing import Final, TypeVar

T = TypeVar("T")
MAX_WAIT_SECONDS: Final = 3.0
SUSPECT_SECONDS: Final = 60
MAX_SUSPECTS: Final = 10_000


class Rank(IntEnum):
    """Who asks for a check, the most trusted first."""

    KNOWN = 0  # from a network from which this user has signed in
    NEW = 1
    SUSPECT = 2  # from a network that has failed within a minute


QUEUE_LIMITS: Final = {Rank.KNOWN: 8, Rank.NEW: 4, Rank.SUSPECT: 2}


class Overloaded(Exception):  # noqa: N818  (a state, not a fault of the caller)
    """There is no room in the queue."""


class Suspects:
    """Networks whose sign-ins have failed, as this worker saw it; only for the order of the queue."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, network: str) -> None:
        """Remember a failure."""
        if len(self._until) >= MAX_SUSPECTS:
            self._until.clear()
        self._until[network] = time.monotonic() + SUSPECT_SECONDS

    def rank(self, network: str, known: bool) -> Rank:
        """Return the rank of an attempt."""
        if known:
            return Rank.KNOWN
        return Rank.SUSPECT if time.monotonic() < self._until.get(network, 0) else Rank.NEW


class Checks:
    """Runs password checks in a thread, one at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._busy = False
        self._waiting: list[tuple[Rank, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def has_room(self, rank: Rank) -> bool:
        """Return whether an attempt of this rank may wait."""
        return len(self._waiting) < QUEUE_LIMITS[rank]

    async def run(self, rank: Rank, check: Callable[..., T], *arguments: object) -> T:
        """Run a check after those that are before it, or raise Overloaded at once."""
        if self._busy:
            await self._wait(rank)
        self._busy = True
        running = self._thread.submit(check, *arguments)
        # Not when its client disconnects: the check goes on, and counts, until its end.
        running.add_done_callback(self._end_in(asyncio.get_running_loop()))
        return await asyncio.wrap_future(running)

    async def _wait(self, rank: Rank) -> None:
        if not self.has_room(rank):
            raise Overloaded
        entry = (rank, next(self._numbers), asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, entry)
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                await entry[2]
        except (TimeoutError, asyncio.CancelledError) as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            elif not entry[2].cancelled():  # its turn had come
                self._next()
            if isinstance(error, TimeoutError):
                raise Overloaded from None
            raise

    def _end_in(self, loop: asyncio.AbstractEventLoop) -> Callable[[Future[T]], None]:
        def end(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the worker has stopped
                loop.call_soon_threadsafe(self._next)

        return end

    def _next(self) -> None:
        """Give the thread to the first one that waits."""
        self._busy = bool(self._waiting)
        if self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
            else:  # cancelled, and not yet removed
                self._next()
