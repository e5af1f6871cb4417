"""Prometheus metrics that add up over the worker processes of an instance."""

import os
import resource
import sys
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from app import __version__

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
PAGE_SIZE = resource.getpagesize()


class Metrics:
    """The service's metrics. Labels are route templates and listed methods, so their number is bounded.

    With PROMETHEUS_MULTIPROC_DIR set before Python starts, each worker keeps its values in files of that
    directory and `render` adds them up; counters of workers that are gone stay in the sum.
    """

    def __init__(self, release: str) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=BUCKETS)
        summed = partial(Gauge, registry=self.registry, multiprocess_mode="livesum")
        latest = partial(Gauge, registry=self.registry, multiprocess_mode="livemostrecent")

        self.requests = counter("http_requests_total", "Requests answered.", ["method", "route", "status"])
        self.durations = histogram("http_request_duration_seconds", "Time to answer.", ["method", "route"])
        self.request_bytes = counter("http_request_bytes_total", "Bodies received.", ["method", "route"])
        self.response_bytes = counter("http_response_bytes_total", "Bodies sent.", ["method", "route"])
        self.in_flight = summed("http_requests_in_flight", "Requests being served.")
        self.sign_ins = counter("sign_ins_total", "Attempts to get a token.", ["result"])

        self.queries = histogram("database_query_duration_seconds", "Time in Postgres.", ["query"])
        self.query_errors = counter("database_errors_total", "Statements that failed.", ["query", "error"])
        self.pool = summed("database_pool_connections", "Connections of the workers' pools.", ["state"])
        self.monitor_time = latest("database_monitor_timestamp_seconds", "When Postgres was last asked.")
        self.monitor_connections = latest("database_connections", "All clients' connections.", ["state"])
        self.monitor = {
            "max_connections": latest("database_max_connections", "Connections the server accepts."),
            "longest_query_seconds": latest("database_longest_query_seconds", "Age of the oldest query."),
            "longest_transaction_seconds": latest(
                "database_longest_transaction_seconds", "Age of the oldest transaction."
            ),
            "size_bytes": latest("database_size_bytes", "Size of the database."),
            "standbys": latest("database_standbys", "Standbys connected to this server."),
            "replication_lag_seconds": latest("database_replication_lag_seconds", "Of the slowest standby."),
        }
        self.monitor_tables = {
            "rows": latest("database_table_rows", "Live rows, estimated.", ["table"]),
            "dead_rows": latest("database_table_dead_rows", "Rows to vacuum, estimated.", ["table"]),
            "size_bytes": latest("database_table_size_bytes", "With indexes.", ["table"]),
            "sequential_scans": latest("database_table_sequential_scans", "Since the start.", ["table"]),
            "index_scans": latest("database_table_index_scans", "Since the start.", ["table"]),
        }

        self.cache = counter("cache_requests_total", "Cache operations.", ["operation", "result"])
        self.cache_durations = histogram("cache_operation_duration_seconds", "Time in Redis.", ["operation"])
        self.cache_up = Gauge(
            "cache_up",
            "Whether every worker uses its cache.",
            multiprocess_mode="livemin",
            registry=self.registry,
        )
        self.lock_waits = histogram("lock_wait_seconds", "Time to a lock.", ["lock", "result"])

        self.memory = summed("app_resident_memory_bytes", "Memory of the workers.")
        self.cpu = counter("app_cpu_seconds_total", "Processor time of the workers.")
        self._cpu_counted = 0.0
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram, Counter, Counter]] = {}
        build = Gauge(
            "app_build_info",
            "Always 1.",
            ["version", "release", "python"],
            multiprocess_mode="max",
            registry=self.registry,
        )
        build.labels(__version__, release, sys.version.split()[0]).set(1)

    def observe_request(
        self, method: str, route: str, status: int, seconds: float, received: int, sent: int
    ) -> None:
        """Count one answered request."""
        try:
            counter, histogram, received_bytes, sent_bytes = self._children[method, route, status]
        except KeyError:
            # Only listed methods and templates get here as keys, so the dictionary stays small.
            known = method in METHODS
            labels = method if known else "other", route
            counter = self.requests.labels(*labels, status)
            histogram = self.durations.labels(*labels)
            received_bytes = self.request_bytes.labels(*labels)
            sent_bytes = self.response_bytes.labels(*labels)
            if known:
                self._children[method, route, status] = counter, histogram, received_bytes, sent_bytes
        counter.inc()
        histogram.observe(seconds)
        received_bytes.inc(received)
        sent_bytes.inc(sent)

    def sample_process(self) -> None:
        """Record this worker's memory and processor time."""
        self.memory.set(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE)
        used = resource.getrusage(resource.RUSAGE_SELF)
        total = used.ru_utime + used.ru_stime
        self.cpu.inc(total - self._cpu_counted)
        self._cpu_counted = total

    def render(self) -> bytes:
        """Return the exposition text: of all workers where they share a directory, else of this process."""
        registry = self.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
