"""Prometheus metrics that add up over the worker processes of an instance."""

import os
import resource
import sys
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
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "http_requests_total", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.durations = Histogram(
            "http_request_duration_seconds",
            "Time to answer.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "http_requests_in_flight",
            "Requests being served.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.queries = Histogram(
            "database_query_duration_seconds",
            "Time in Postgres.",
            ["query"],
            buckets=BUCKETS,
            registry=registry,
        )
        self.query_errors = Counter(
            "database_errors_total", "Statements that failed.", ["query", "error"], registry=registry
        )
        self.pool = Gauge(
            "database_pool_connections",
            "Connections of the workers' pools.",
            ["state"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.cache = Counter(
            "cache_requests_total", "Cache operations.", ["operation", "result"], registry=registry
        )
        self.cache_durations = Histogram(
            "cache_operation_duration_seconds",
            "Time in Redis.",
            ["operation"],
            buckets=BUCKETS,
            registry=registry,
        )
        self.cache_up = Gauge(
            "cache_up", "Whether every worker uses its cache.", multiprocess_mode="livemin", registry=registry
        )
        self.lock_waits = Histogram(
            "lock_wait_seconds", "Time to a lock.", ["lock", "result"], buckets=BUCKETS, registry=registry
        )
        self.memory = Gauge(
            "app_resident_memory_bytes",
            "Memory of the workers.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.cpu = Counter("app_cpu_seconds_total", "Processor time of the workers.", registry=registry)
        self._cpu_counted = 0.0
        build = Gauge(
            "app_build_info",
            "Always 1.",
            ["version", "release", "python"],
            multiprocess_mode="max",
            registry=registry,
        )
        build.labels(__version__, release, sys.version.split()[0]).set(1)
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        try:
            counter, histogram = self._children[method, route, status]
        except KeyError:
            # Only listed methods and templates get here as keys, so the dictionary stays small.
            method = method if method in METHODS else "other"
            counter = self.requests.labels(method, route, status)
            histogram = self.durations.labels(method, route)
            if method != "other":
                self._children[method, route, status] = counter, histogram
        counter.inc()
        histogram.observe(seconds)

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
