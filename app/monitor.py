"""What Postgres says about itself, as metrics from one worker of each host, and to an operator."""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from app.db import Driver, create_engine
from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 15
HOUSEKEEPING_SECONDS = 600
STATES = (
    "active",
    "idle",
    "idle in transaction",
    "idle in transaction (aborted)",
    "fastpath function call",
    "disabled",
    "unknown",  # of another role's, without pg_read_all_stats
)
ACTIVITY = """
SELECT coalesce(state, 'unknown') AS state, count(*) AS connections,
  coalesce(max(extract(epoch FROM clock_timestamp() - query_start)) FILTER (WHERE state = 'active'), 0)
    ::float8 AS query_seconds,
  coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 AS transaction_seconds
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
GROUP BY 1"""
DATABASE = """
SELECT pg_database_size(current_database()) AS size_bytes,
  current_setting('max_connections')::int AS max_connections,
  pg_is_in_recovery() AS standby,
  (SELECT count(*) FROM pg_stat_replication) AS standbys,
  coalesce(extract(epoch FROM CASE WHEN pg_is_in_recovery() THEN now() - pg_last_xact_replay_timestamp()
    ELSE (SELECT max(replay_lag) FROM pg_stat_replication) END), 0)::float8 AS replication_lag_seconds"""
TABLES = """
SELECT relname AS table, n_live_tup AS rows, n_dead_tup AS dead_rows,
  pg_total_relation_size(relid) AS size_bytes, coalesce(seq_scan, 0) AS sequential_scans,
  coalesce(idx_scan, 0) AS index_scans, greatest(last_vacuum, last_autovacuum)::text AS vacuumed_at
FROM pg_stat_user_tables ORDER BY relname"""


async def collect(driver: Driver) -> dict[str, Any]:
    """Return the figures of the database that a connection leads to."""
    activity = await driver.fetch(ACTIVITY)
    return {
        **dict(await driver.fetchrow(DATABASE) or {}),
        "connections": {row["state"]: row["connections"] for row in activity},
        "longest_query_seconds": max((row["query_seconds"] for row in activity), default=0),
        "longest_transaction_seconds": max((row["transaction_seconds"] for row in activity), default=0),
        "tables": [dict(row) for row in await driver.fetch(TABLES)],
    }


class DatabaseMonitor:
    """Collects while it leads: of all workers on a host, the one whose connection holds an advisory lock.

    Postgres frees the lock when that connection ends, however that happens, and another worker takes over.
    The leader also does what must be done now and then, by one of many.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, housekeeping: Callable[[], Awaitable[Any]]
    ) -> None:
        self._engine = create_engine(settings, pooled=False)
        self._metrics = metrics
        self._housekeeping = housekeeping
        self._next_housekeeping = 0.0

    async def run(self) -> None:
        """Lead, or try again to become the leader, for ever."""
        while True:
            try:
                await self._lead()
            except Exception as error:
                logger.warning("The database monitor stopped", extra={"error": type(error).__name__})
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _lead(self) -> None:
        async with self._engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            lock = "SELECT pg_try_advisory_lock(hashtextextended('monitor ' || $1, 0))"
            if not await driver.fetchval(lock, socket.gethostname()):
                return
            while True:
                self._record(await collect(driver))
                if time.monotonic() >= self._next_housekeeping:
                    await self._housekeeping()
                    self._next_housekeeping = time.monotonic() + HOUSEKEEPING_SECONDS
                await asyncio.sleep(INTERVAL_SECONDS)

    def _record(self, figures: dict[str, Any]) -> None:
        for state in STATES:
            self._metrics.monitor_connections.labels(state).set(figures["connections"].get(state, 0))
        for name, gauge in self._metrics.monitor.items():
            gauge.set(figures[name])
        for table in figures["tables"]:
            for name, gauge in self._metrics.monitor_tables.items():
                gauge.labels(table["table"]).set(table[name])
        self._metrics.monitor_time.set_to_current_time()
