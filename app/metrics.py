"""Prometheus metrics that add up over the worker processes."""

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
# What one worker last said about the database is left out when it is older.
FIGURES_SECONDS = 60


class Metrics:
    """The service's metrics. Labels are route templates and listed methods, so their number is bounded.

    With PROMETHEUS_MULTIPROC_DIR set before Python starts, each worker keeps its values in files of that
    directory and `render` adds them up; counters of workers that are gone stay in the sum.
    """

    def __init__(self, release: str) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=BUCKETS)
        gauge = partial(Gauge, registry=self.registry, multiprocess_mode="livesum")

        self.requests = counter("http_requests_total", "Requests answered.", ["method", "route", "status"])
        self.durations = histogram("http_request_duration_seconds", "Time to answer.", ["method", "route"])
        self.request_bytes = counter("http_request_bytes_total", "Bodies received.", ["method", "route"])
        self.response_bytes = counter("http_response_bytes_total", "Bodies sent.", ["method", "route"])
        self.in_flight = gauge("http_requests_in_flight", "Requests being served.")
        self.sign_ins = counter("sign_ins_total", "Attempts to get a token.", ["result"])

        self.queries = histogram("database_query_duration_seconds", "Time in Postgres.", ["query"])
        self.query_errors = counter("database_errors_total", "Statements that failed.", ["query", "error"])
        self.pool = gauge("database_pool_connections", "Of the workers' pools.", ["state"])
        self.cache = counter("cache_requests_total", "Cache operations.", ["operation", "result"])
        self.cache_durations = histogram("cache_operation_duration_seconds", "Time in Redis.", ["operation"])
        self.cache_up = gauge("cache_up", "Whether every worker uses its cache.", multiprocess_mode="livemin")
        self.lock_waits = histogram("lock_wait_seconds", "Time to a lock.", ["lock", "result"])

        self.memory = gauge("app_resident_memory_bytes", "Memory of the workers.")
        self.cpu = counter("app_cpu_seconds_total", "Processor time of the workers.")
        build = gauge(
            "app_build_info", "Always 1.", ["version", "release", "python"], multiprocess_mode="livemax"
        )
        build.labels(__version__, release, sys.version.split()[0]).set(1)

        self._cpu_counted = 0.0
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram, Counter, Counter]] = {}
        self._directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._figures: tuple[float, bytes] = (0, b"")

    def observe_request(
        self, method: str, route: str, status: int, seconds: float, received: int, sent: int
    ) -> None:
        """Count one answered request."""
        known = method if method in METHODS else "other"
        children = self._children.get((known, route, status))
        if children is None:
            children = self._children[known, route, status] = (
                self.requests.labels(known, route, status),
                self.durations.labels(known, route),
                self.request_bytes.labels(known, route),
                self.response_bytes.labels(known, route),
            )
        counter, histogram, received_bytes, sent_bytes = children
        counter.inc()
        histogram.observe(seconds)
        if received:
            received_bytes.inc(received)
        if sent:
            sent_bytes.inc(sent)

    def sample_process(self) -> None:
        """Record this worker's memory and processor time."""
        self.memory.set(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE)
        used = time.process_time()
        self.cpu.inc(used - self._cpu_counted)
        self._cpu_counted = used

    def publish(self, figures: Collector) -> None:
        """Show what one worker knows for all of them; it replaces what was shown before, whole."""
        registry = CollectorRegistry()
        registry.register(figures)
        text = generate_latest(registry)
        self._figures = time.time(), text
        if self._directory:
            fresh = Path(self._directory, f"figures-{os.getpid()}")
            fresh.write_bytes(text)
            fresh.replace(Path(self._directory, "figures"))

    def render(self) -> bytes:
        """Return the exposition text: of all workers where they share a directory, else of this process."""
        if not self._directory:
            written, figures = self._figures
            text = generate_latest(self.registry)
        else:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            text = generate_latest(registry)
            file = Path(self._directory, "figures")
            written, figures = (file.stat().st_mtime, file.read_bytes()) if file.exists() else (0, b"")
        return text + figures if time.time() - written < FIGURES_SECONDS else text
