"""What Postgres says about itself, as metrics from one worker of each host, and to an operator."""

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.db import Driver, create_engine
from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger(__name__)

# Requests come first when a worker starts.
START_SECONDS = 1
INTERVAL_SECONDS = 15
FIGURES = {
    "max_connections": "Connections the server accepts.",
    "longest_query_seconds": "Age of the oldest query; absent without pg_read_all_stats.",
    "longest_transaction_seconds": "Age of the oldest transaction; absent without pg_read_all_stats.",
    "size_bytes": "Size of the database.",
    "standbys": "Standbys connected to this server.",
    "replication_lag_seconds": "Of the slowest standby, or this one's; absent where there is none.",
}
TABLE_FIGURES = {
    "rows": "Live rows, estimated.",
    "dead_rows": "Rows to vacuum, estimated.",
    "size_bytes": "With indexes.",
    "sequential_scans": "Since the start.",
    "index_scans": "Since the start.",
}
# Without pg_read_all_stats the server hides all but the existence of other roles' sessions.
ACTIVITY = """
SELECT coalesce(state, 'unknown') AS state, count(*) AS connections,
  max(extract(epoch FROM clock_timestamp() - query_start)) FILTER (WHERE state = 'active')::float8 AS query,
  max(extract(epoch FROM clock_timestamp() - xact_start))::float8 AS transaction
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND coalesce(backend_type, 'client backend') = 'client backend'
GROUP BY 1"""
# A standby that has nothing to replay is not behind, however long nothing was written.
DATABASE = """
SELECT pg_database_size(current_database()) AS size_bytes,
  current_setting('max_connections')::int AS max_connections,
  pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all,
  pg_is_in_recovery() AS standby,
  (SELECT count(*) FROM pg_stat_replication) AS standbys,
  extract(epoch FROM CASE
    WHEN NOT pg_is_in_recovery() THEN
      (SELECT max(coalesce(replay_lag, '0')) FROM pg_stat_replication WHERE state IS NOT NULL)
    WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN '0'
    ELSE now() - pg_last_xact_replay_timestamp()
  END)::float8 AS replication_lag_seconds"""
TABLES = """
SELECT relname AS table, n_live_tup AS rows, n_dead_tup AS dead_rows,
  pg_total_relation_size(relid) AS size_bytes, coalesce(seq_scan, 0) AS sequential_scans,
  coalesce(idx_scan, 0) AS index_scans, greatest(last_vacuum, last_autovacuum)::text AS vacuumed_at
FROM pg_stat_user_tables ORDER BY relname"""
LEAD = "SELECT pg_try_advisory_lock(hashtextextended('monitor ' || $1, 0))"


async def collect(driver: Driver) -> dict[str, Any]:
    """Return the figures of the database that a connection leads to; None stands for unknown."""
    (figures,) = await driver.fetch(DATABASE)
    activity = await driver.fetch(ACTIVITY)

    def longest(what: str) -> float | None:
        return max((row[what] or 0 for row in activity), default=0) if figures["sees_all"] else None

    return {
        **dict(figures),
        "connections": {row["state"]: row["connections"] for row in activity},
        "longest_query_seconds": longest("query"),
        "longest_transaction_seconds": longest("transaction"),
        "tables": [dict(row) for row in await driver.fetch(TABLES)],
    }


@dataclass(eq=False)
class Figures(Collector):
    """What is known of the figures, as metrics: of the host, so in no worker's files."""

    figures: dict[str, Any]

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        for name, text in FIGURES.items():
            if self.figures[name] is not None:
                yield GaugeMetricFamily(f"database_{name}", text, self.figures[name])
        connections = GaugeMetricFamily("database_connections", "All clients' connections.", labels=["state"])
        known = {"active": 0, "idle": 0, "idle in transaction": 0, **self.figures["connections"]}
        for state, number in known.items():
            connections.add_metric([state], number)
        yield connections
        for name, text in TABLE_FIGURES.items():
            of_tables = GaugeMetricFamily(f"database_table_{name}", text, labels=["table"])
            for table in self.figures["tables"]:
                of_tables.add_metric([table["table"]], table[name])
            yield of_tables
        asked = "When Postgres was last asked."
        yield GaugeMetricFamily("database_monitor_timestamp_seconds", asked, time.time())


async def monitor_database(settings: Settings, metrics: Metrics) -> None:
    """Collect while leading: of all workers on a host, the one whose connection holds an advisory lock.

    Postgres frees the lock when that connection ends, however that happens, and another worker takes over.
    """
    engine = create_engine(settings, pooled=False)
    await asyncio.sleep(START_SECONDS)
    while True:
        try:
            async with engine.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                leads = await driver.fetchval(LEAD, socket.gethostname())
                while leads:
                    metrics.publish(Figures(await collect(driver)))
                    await asyncio.sleep(INTERVAL_SECONDS)
        except Exception as error:
            logger.warning("The database monitor stopped", extra={"error": type(error).__name__})
        await asyncio.sleep(INTERVAL_SECONDS)
