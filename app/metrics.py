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
# By their names in /health/detail.
PROCESS_GAUGES = {
    "threads": ("app_threads", "Threads of the workers."),
    "open_files": ("app_open_files", "Open file descriptors of the workers, sockets included."),
    "open_sockets": ("app_open_sockets", "Open sockets of the workers: to clients, the database and Redis."),
    "memory_bytes": ("app_resident_memory_bytes", "Resident memory of the workers."),
}
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

        gauge("app_workers", "Worker processes.").set(1)
        self.process = {figure: gauge(name, text) for figure, (name, text) in PROCESS_GAUGES.items()}
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
        """Record this worker's process figures."""
        figures = process_figures()
        for name, metric in self.process.items():
            metric.set(figures[name])
        self.cpu.inc(figures["cpu_seconds"] - self._cpu_counted)
        self._cpu_counted = figures["cpu_seconds"]

    def worker_figures(self) -> dict[str, float]:
        """Return the number of workers, and their latest process figures summed up."""
        names = {"workers": "app_workers"} | {figure: name for figure, (name, _) in PROCESS_GAUGES.items()}
        families = {family.name: family.samples for family in self._registry_of_all().collect()}
        return {figure: families[name][0].value for figure, name in names.items()}

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
        text = generate_latest(self._registry_of_all())
        if not self._directory:
            written, statistics = self._statistics
        else:
            file = Path(self._directory, "statistics")
            written, statistics = (file.stat().st_mtime, file.read_bytes()) if file.exists() else (0, b"")
        return text + statistics if time.time() - written < STATISTICS_MAX_AGE_SECONDS else text

    def _registry_of_all(self) -> CollectorRegistry:
        if not self._directory:
            return self.registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return registry


def process_figures() -> dict[str, float]:
    """Return figures of this process; memory in bytes, CPU time and uptime in seconds."""
    # Numbered as in proc(5), from the third field on: the second may contain spaces.
    fields = dict(enumerate(Path("/proc/self/stat").read_text().rpartition(")")[2].split(), 3))
    started = int(fields[22]) / os.sysconf("SC_CLK_TCK")
    files = list(Path("/proc/self/fd").iterdir())
    return {
        "threads": int(fields[20]),
        "open_files": len(files) - 1,  # without the one that listed them
        "open_sockets": sum(file.is_socket() for file in files),
        "memory_bytes": int(fields[24]) * PAGE_SIZE,
        "cpu_seconds": time.process_time(),
        "uptime_seconds": round(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 3),
    }
