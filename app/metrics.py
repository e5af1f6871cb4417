"""Prometheus metrics, summed over the worker processes."""

import os
import resource
import sys
import time
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app import __version__

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
PAGE_SIZE = resource.getpagesize()
# Older database statistics are not exposed.
STATISTICS_MAX_AGE_SECONDS = 60


class Metrics:
    """The service's metrics. Labels are route templates and known methods, so cardinality is bounded.

    If PROMETHEUS_MULTIPROC_DIR is set before Python starts, each worker keeps its values in files there and
    `render` sums them up. Counters of stopped workers stay in the sum.
    """

    def __init__(self, release: str) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=BUCKETS)
        gauge = partial(Gauge, registry=self.registry, multiprocess_mode="livesum")

        self.requests = counter(
            "http_requests_total", "HTTP requests answered.", ["method", "route", "status"]
        )
        self.durations = histogram(
            "http_request_duration_seconds", "Time to answer an HTTP request.", ["method", "route"]
        )
        self.request_bytes = counter(
            "http_request_bytes_total", "Bytes of request bodies received.", ["method", "route"]
        )
        self.response_bytes = counter(
            "http_response_bytes_total", "Bytes of response bodies sent.", ["method", "route"]
        )
        self.in_flight = gauge("http_requests_in_flight", "HTTP requests being served now.")
        self.sign_ins = counter("sign_ins_total", "Sign-in attempts.", ["result"])

        self.queries = histogram(
            "database_query_duration_seconds",
            "Time of a database statement, including the wait for a connection.",
            ["query"],
        )
        self.query_errors = counter(
            "database_errors_total", "Database statements that failed, by exception.", ["query", "error"]
        )
        self.pool = gauge(
            "database_pool_connections", "Database connections in the pool, by state.", ["state"]
        )
        self.cache = counter("cache_requests_total", "Cache operations, by result.", ["operation", "result"])
        self.cache_durations = histogram(
            "cache_operation_duration_seconds", "Time of a Redis operation.", ["operation"]
        )
        self.cache_up = gauge(
            "cache_up", "1 if every worker uses cached values, else 0.", multiprocess_mode="livemin"
        )
        self.lock_waits = histogram(
            "lock_wait_seconds", "Time to acquire a lock or give up.", ["lock", "result"]
        )

        self.memory = gauge("app_resident_memory_bytes", "Resident memory of the workers.")
        self.cpu = counter("app_cpu_seconds_total", "CPU time of the workers.")
        build = gauge(
            "app_build_info",
            "Version, release and Python of the running service; always 1.",
            ["version", "release", "python"],
            multiprocess_mode="livemax",
        )
        build.labels(__version__, release, sys.version.split()[0]).set(1)

        self._cpu_counted = 0.0
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram, Counter, Counter]] = {}
        self._directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._statistics: tuple[float, bytes] = (0, b"")

    def observe_request(
        self, method: str, route: str, status: int, seconds: float, received: int, sent: int
    ) -> None:
        """Count one answered request."""
        label = method if method in METHODS else "other"
        children = self._children.get((label, route, status))
        if children is None:
            children = self._children[label, route, status] = (
                self.requests.labels(label, route, status),
                self.durations.labels(label, route),
                self.request_bytes.labels(label, route),
                self.response_bytes.labels(label, route),
            )
        counter, histogram, received_bytes, sent_bytes = children
        counter.inc()
        histogram.observe(seconds)
        if received:
            received_bytes.inc(received)
        if sent:
            sent_bytes.inc(sent)

    def sample_process(self) -> None:
        """Record this worker's memory and CPU time."""
        self.memory.set(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE)
        used = time.process_time()
        self.cpu.inc(used - self._cpu_counted)
        self._cpu_counted = used

    def publish(self, statistics: Collector) -> None:
        """Expose one worker's database statistics for all workers, in place of the previous ones."""
        registry = CollectorRegistry()
        registry.register(statistics)
        text = generate_latest(registry)
        self._statistics = time.time(), text
        if self._directory:
            temporary = Path(self._directory, f"statistics-{os.getpid()}")
            temporary.write_bytes(text)
            temporary.replace(Path(self._directory, "statistics"))

    def render(self) -> bytes:
        """Return the exposition text: of all workers if they share a directory, else of this process."""
        if not self._directory:
            written, statistics = self._statistics
            text = generate_latest(self.registry)
        else:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
            text = generate_latest(registry)
            file = Path(self._directory, "statistics")
            written, statistics = (file.stat().st_mtime, file.read_bytes()) if file.exists() else (0, b"")
        return text + statistics if time.time() - written < STATISTICS_MAX_AGE_SECONDS else text
