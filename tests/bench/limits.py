"""The limits of the host: Nginx, Postgres and Redis without the service."""

from __future__ import annotations

import re
from statistics import median

from tests.bench.measure import CONNECTIONS, Host, Load, measure

PGBENCH = r"""printf '%s\n' '\set id random(1, 100000)' \
  'SELECT id, name, category, price, stock FROM products WHERE id = :id;' >/tmp/by_key.sql
runuser -u postgres -- pgbench --no-vacuum --protocol prepared --client 16 --jobs 2 --time {seconds} \
  --file /tmp/by_key.sql api 2>&1"""
REDIS_BENCHMARK = r"""redis-benchmark -s /run/redis-cache/redis-server.sock -c {connections} -n {requests} \
  -q --user api -a "$(cat /etc/api/credentials/redis_password)" GET api:bench 2>/dev/null"""


def parse_pgbench(output: str) -> float:
    """Return pgbench's transactions per second; raise RuntimeError if there are none."""
    if (found := re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)) is None:
        raise RuntimeError(f"pgbench printed no results: {output}")
    return float(found[1])


def parse_redis_benchmark(output: str) -> float:
    """Return redis-benchmark's last requests per second; it rewrites one line of output."""
    found = re.findall(r"([\d.]+) requests per second", output)
    if not found:
        raise RuntimeError(f"redis-benchmark printed no results: {output}")
    return float(found[-1])


def measure_limits(host: Host, rounds: int, seconds: int, token: str) -> dict[str, float]:
    """Return the median of each limit, per second."""
    nginx = Load("limit", "nginx", "/return")
    requests = 100_000 * seconds
    found = [
        (
            measure(host, nginx, seconds, token).rps,
            parse_pgbench(host.ssh(PGBENCH.format(seconds=seconds))),
            parse_redis_benchmark(
                host.ssh(REDIS_BENCHMARK.format(connections=CONNECTIONS, requests=requests))
            ),
        )
        for _ in range(rounds)
    ]
    names = ("nginx_return", "pgbench_by_key", "redis_benchmark_get")
    return {name: median(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}
