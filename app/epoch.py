"""The epoch of the cache: all workers agree through Postgres which cached values they may use."""

import asyncio
import logging
import time
from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, DateTime, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Database
from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
# Longer than an interval and the lock timeout of the monitor, which shares the connection.
TRUST_SECONDS: Final = 3.0
# Longer than TRUST_SECONDS, so that every worker knows the new epoch when the suspension ends.
SUSPENSION_SECONDS: Final = 8.0
READ: Final = """
SELECT epoch, extract(epoch FROM suspended_until - clock_timestamp())::float8 AS left
FROM cache_epochs WHERE prefix = $1"""
# The time makes an epoch that no restored database can repeat.
SUSPEND: Final = """
INSERT INTO cache_epochs (prefix, epoch, suspended_until) VALUES (
  $1, extract(epoch FROM clock_timestamp()) * 1000000,
  clock_timestamp() + make_interval(secs => $2))
ON CONFLICT (prefix) DO UPDATE SET suspended_until = excluded.suspended_until,
  epoch = greatest(excluded.epoch, cache_epochs.epoch + 1)
RETURNING epoch"""


def background_database(settings: Settings, metrics: Metrics) -> Database:
    """Return a database with one connection, which the background tasks of a worker share.

    A busy or exhausted pool must not delay the poll of the epoch.
    """
    one = {"database_pool_size": 1, "database_max_overflow": 0}
    return Database(settings.model_copy(update=one), metrics)


class CacheEpoch(Base):
    """The epoch of the keys below one prefix; without a row it is 0."""

    __tablename__ = "cache_epochs"

    prefix: Mapped[str] = mapped_column(Text, primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger)
    suspended_until: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Epoch:
    """Decides whether this worker may use cached values, and stops all workers from using them.

    Each worker polls Postgres every POLL_SECONDS and trusts the answer for TRUST_SECONDS. A worker that
    cannot remove a value from Redis starts a suspension with a new epoch, and waits until every older
    answer has expired. No worker uses or stores cached values during a suspension. The epoch is part of
    every key, so values from before the suspension are unreachable after it.
    """

    def __init__(self, database: Database, prefix: str) -> None:
        self._database = database
        self._prefix = prefix
        self._lock = asyncio.Lock()
        self._suspended = False
        self._known_until = self._suspended_until = self._effective_at = 0.0
        self.number = 0

    @property
    def known(self) -> bool:
        """Whether the last poll is recent enough to know the epoch."""
        return time.monotonic() < self._known_until

    @property
    def trusted(self) -> bool:
        """Whether this worker may use cached values now."""
        return not self._suspended and self.known

    async def poll(self) -> None:
        """Read the epoch; raises an exception if Postgres does not answer."""
        async with self._lock:
            started = time.monotonic()
            rows = await self._database.fetch("cache.epoch", READ, self._prefix)
            self.number, left = rows[0] if rows else (0, 0.0)
            self._known_until = started + TRUST_SECONDS
            self._suspended = left > 0
            if self._suspended:
                self._extend(started + left)

    async def suspend(self) -> None:
        """Suspend the cache; return once no worker uses a value that was stored before this call.

        Repeats until Postgres stores it: workers that reach Postgres would go on to use such values.
        """
        while not self._suspended_for(TRUST_SECONDS):
            try:
                async with self._lock:
                    if not self._suspended_for(TRUST_SECONDS):
                        started = time.monotonic()
                        (row,) = await self._database.execute(
                            "cache.suspend", SUSPEND, self._prefix, SUSPENSION_SECONDS
                        )
                        self.number, self._suspended = row["epoch"], True
                        self._extend(started + SUSPENSION_SECONDS)
            except Exception as error:  # any exception: the other workers do not know yet
                logger.warning("Cache not suspended", extra={"error": type(error).__name__})
                await asyncio.sleep(POLL_SECONDS / 2)
        await asyncio.sleep(self._effective_at - time.monotonic())

    def _suspended_for(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self._suspended_until

    def _extend(self, until: float) -> None:
        if not self._suspended_for(0):  # it has begun, and other workers may not know before this time
            self._effective_at = time.monotonic() + TRUST_SECONDS
            logger.warning("Cache suspended: a value could not be removed from Redis")
        self._suspended_until = max(until, self._suspended_until)
