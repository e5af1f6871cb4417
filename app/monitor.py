"""Statistics of Postgres: as metrics from one worker per host, and for /health/detail."""

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

from app.db import MAX_REASON_LENGTH, Database
from app.metrics import Metrics
from app.sessions import Driver

logger = logging.getLogger(__name__)

# The first requests of a new worker have priority.
START_SECONDS = 1
INTERVAL_SECONDS = 15
DATABASE_STATISTICS = {
    "max_connections": "Connections that the server accepts.",
    "longest_query_seconds": "Age of the oldest query; absent without pg_read_all_stats.",
    "longest_transaction_seconds": "Age of the oldest transaction; absent without pg_read_all_stats.",
    "size_bytes": "Size of the database.",
    "standbys": "Standbys connected to the server.",
    "replication_lag_seconds": "Lag of the slowest standby, or of this standby; absent without one.",
}
TABLE_STATISTICS = {
    "rows": "Live rows of the table, estimated.",
    "dead_rows": "Dead rows of the table, estimated.",
    "size_bytes": "Size of the table with its indexes.",
    "sequential_scans": "Sequential scans of the table since the statistics were reset.",
    "index_scans": "Index scans of the table since the statistics were reset.",
}
TABLE_TIMES = {
    "vacuumed": "Time of the last vacuum of the table, by an operator or autovacuum; absent without one.",
    "analyzed": "Time of the last analyze of the table, by an operator or autovacuum; absent without one.",
}
# Without pg_read_all_stats, of other roles' sessions only the existence is visible.
ACTIVITY = """
SELECT coalesce(state, 'unknown') AS state, count(*) AS connections,
  max(extract(epoch FROM clock_timestamp() - query_start)) FILTER (WHERE state = 'active')::float8 AS query,
  max(extract(epoch FROM clock_timestamp() - xact_start))::float8 AS transaction
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND coalesce(backend_type, 'client backend') = 'client backend'
GROUP BY 1"""
# A standby that has replayed everything has no lag, however long ago the last write was.
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
# The ten largest tables; regclass adds the schema where the name alone is ambiguous.
TABLES = """
SELECT relid::regclass::text AS table, n_live_tup AS rows, n_dead_tup AS dead_rows,
  pg_total_relation_size(relid) AS size_bytes, coalesce(seq_scan, 0) AS sequential_scans,
  coalesce(idx_scan, 0) AS index_scans, greatest(last_vacuum, last_autovacuum) AS vacuumed_at,
  greatest(last_analyze, last_autoanalyze) AS analyzed_at
FROM pg_stat_user_tables ORDER BY size_bytes DESC, relid LIMIT 10"""
TRY_LEADER_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('monitor ' || $1, 0))"


async def collect_statistics(driver: Driver) -> dict[str, Any]:
    """Return the statistics of the connection's database; None means unknown."""
    (database,) = await driver.fetch(DATABASE)
    activity = await driver.fetch(ACTIVITY)

    def longest(column: str) -> float | None:
        return max((row[column] or 0 for row in activity), default=0) if database["sees_all"] else None

    return {
        **dict(database),
        "connections": {row["state"]: row["connections"] for row in activity},
        "longest_query_seconds": longest("query"),
        "longest_transaction_seconds": longest("transaction"),
        "tables": [dict(row) for row in await driver.fetch(TABLES)],
    }


@dataclass(eq=False)
class DatabaseCollector(Collector):
    """Yields the known statistics as metrics; they are per host, so not in the workers' metrics."""

    statistics: dict[str, Any]

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        for name, text in DATABASE_STATISTICS.items():
            if self.statistics[name] is not None:
                yield GaugeMetricFamily(f"database_{name}", text, self.statistics[name])
        connections = GaugeMetricFamily(
            "database_connections", "Connections of all clients, by state.", labels=["state"]
        )
        by_state = {"active": 0, "idle": 0, "idle in transaction": 0, **self.statistics["connections"]}
        for state, number in by_state.items():
            connections.add_metric([state], number)
        yield connections
        for name, text in TABLE_STATISTICS.items():
            family = GaugeMetricFamily(f"database_table_{name}", text, labels=["table"])
            for table in self.statistics["tables"]:
                family.add_metric([table["table"]], table[name])
            yield family
        for name, text in TABLE_TIMES.items():
            family = GaugeMetricFamily(f"database_table_{name}_timestamp_seconds", text, labels=["table"])
            for table in self.statistics["tables"]:
                if at := table[f"{name}_at"]:
                    family.add_metric([table["table"]], at.timestamp())
            yield family
        text = "Time of the last collection from Postgres."
        yield GaugeMetricFamily("database_monitor_timestamp_seconds", text, time.time())


async def monitor_database(database: Database, metrics: Metrics) -> None:
    """Publish statistics every 15 s while this worker is the leader of its host.

    The leader's connection holds an advisory lock. Postgres releases it when that connection ends, and
    another worker becomes the leader.
    """
    await asyncio.sleep(START_SECONDS)
    while True:
        try:
            async with database.connection("monitor") as driver:
                if await driver.fetchval(TRY_LEADER_LOCK, socket.gethostname()):
                    metrics.publish(DatabaseCollector(await collect_statistics(driver)))
        except Exception as error:
            log_fields = {"error": type(error).__name__, "reason": str(error)[:MAX_REASON_LENGTH]}
            logger.warning("Database monitor failed", extra=log_fields)
        await asyncio.sleep(INTERVAL_SECONDS)
