"""`make bench`: measure the deployed service, a tutorial's service and the host's limits on one lab host.

BENCH_ROUNDS (5) and BENCH_SECONDS (8) set the length. BENCH_PARTS (rounds,limits,edge_cache,growth) selects
parts; "choices" is one more. The results of a selection are in .lab/bench-PARTS.json. BENCH_KEEP=1 keeps the
host for the next run. BENCH_BUSY=1 measures on a busy machine.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from app.products.schemas import ListQuery
from tests.bench import report
from tests.bench.choices import choices
from tests.bench.limits import measure_limits
from tests.bench.measure import Host, Load, Sample, busy_share, measure
from tests.lab import ROOT, Lab, clean_environment

INVENTORY = Path(__file__).parent / "inventory"
PARTS = ("rounds", "limits", "edge_cache", "growth")
SERVED = {"api": "ours", "uncached": "ours", "reference": "reference", "bare": "bare"}
ROWS = 100_000
GROWTH = (1_000, ROWS, 5_000_000)
BUSY = 0.1
PRODUCTS = "/api/v1/products"
PRODUCT = b'{"name":"Lamp","category":"bench","price":"19.90","stock":3}'
# Creates the indexes after the rows, which is faster.
SEED = r"""set -eu
file=$(mktemp)
chmod 644 $file
seq {rows} >$file.ids
awk '{{ print "Product " $1 "\t" "category-" $1 % 50 "\t" $1 * 7919 % 100000 / 100 "\t" $1 % 100 }}' \
  $file.ids >$file
runuser -u postgres -- psql -qAtX -v ON_ERROR_STOP=1 -d api >/dev/null <<SQL
TRUNCATE products RESTART IDENTITY;
CREATE TEMP TABLE made AS SELECT indexrelid::regclass AS name, pg_get_indexdef(indexrelid) AS sql
  FROM pg_index WHERE indrelid = 'products'::regclass AND NOT indisprimary;
SELECT 'DROP INDEX ' || name FROM made \gexec
\copy products (name, category, price, stock) FROM '$file'
SELECT sql FROM made \gexec
VACUUM ANALYZE products;
CHECKPOINT;
SQL
rm $file $file.ids"""
EDGE_CACHE = {"nginx_cached_paths": {PRODUCTS: {"seconds": 1}}}

BY_KEY = Load("by_key", "uncached", f"/uncached{PRODUCTS}/:id", 2000, ROWS)
REFERENCE_BY_KEY = Load("by_key", "reference", f"/reference{PRODUCTS}/:id", 2000, ROWS)
CACHED = Load("cached", "api", f"{PRODUCTS}/:id", 100, ROWS)
LIST = Load("list", "api", f"{PRODUCTS}?page_size=20")
REFERENCE_CACHED = Load("cached", "reference", "/reference/api/v1/cached/:id", 100, ROWS)
REFERENCE_LIST = Load("list", "reference", f"/reference{PRODUCTS}?limit=20")
# The order of a round.
LOADS = (
    Load("no_io", "api", "/api/v1/nothing"),
    Load("no_io", "reference", "/reference/api/v1/nothing"),
    Load("no_io", "bare", "/bare/"),
    BY_KEY,
    REFERENCE_BY_KEY,
    CACHED,
    REFERENCE_CACHED,
    LIST,
    REFERENCE_LIST,
    Load("insert", "api", PRODUCTS, method="POST"),
    Load("insert", "reference", f"/reference{PRODUCTS}", method="POST"),
)


def log(what: str) -> None:
    """Print progress with the time to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)  # noqa: T201


def play(*arguments: str) -> None:
    """Run a playbook; print its output only if it fails."""
    command = ["ansible-playbook", "-i", str(INVENTORY), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


class Bench:
    """One run against one host."""

    def __init__(self, host: Host, rounds: int, seconds: int) -> None:
        self.host = host
        self.rounds = rounds
        self.seconds = seconds
        self.token = ""

    def build(self) -> None:
        """Deploy the service and the services it is compared with."""
        self.host.pin()
        log("deploying the service with site.yml")
        play("site.yml")
        log("deploying the services for comparison")
        play("tests/bench/services.yml")
        token_command = "api-manage token --subject bench --scope products:write --lifetime 86400"
        self.token = self.host.ssh(token_command).strip()

    def request(self, path: str, data: bytes | None = None) -> Any:
        """Return the JSON of a path; POST the data if there are any."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # wrk does not verify certificates either
        connection = http.client.HTTPSConnection(self.host.address, timeout=10, context=context)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        connection.request("POST" if data else "GET", path, data, headers if data else {})
        response = connection.getresponse()
        body = response.read()
        if response.status not in (200, 201):
            raise RuntimeError(f"{path} responded {response.status} {body.decode()}")
        return json.loads(body)

    def wait(self, load: Load) -> None:
        """Wait until a new service responds, and 2 s more for its other workers."""
        deadline = time.monotonic() + 60
        while True:
            time.sleep(1)
            try:
                self.request(load.path.replace(":id", "1"))
            except (OSError, RuntimeError):
                if time.monotonic() > deadline:
                    raise
            else:
                break
        time.sleep(2)

    def check(self, loads: Iterable[Load]) -> None:
        """Exit if a service's response is wrong."""
        for load in loads:
            body = self.request(load.path.replace(":id", "1"), PRODUCT if load.method == "POST" else None)
            if load.route == "list":
                items = body["items"] if load.service == "api" else body
                correct = [item["id"] for item in items] == [*range(1, 21)]
            elif load.route in ("by_key", "cached"):
                correct = (body["id"], body["name"]) == (1, "Product 1")
            else:
                correct = body.get("name", body.get("status")) in ("Lamp", "nothing")
            if not correct:
                sys.exit(f"{load.service} responded to {load.path} with {body}: nothing was measured.")

    def seed(self, rows: int) -> None:
        """Replace all rows of the table."""
        log(f"seeding {rows:,} products")
        self.host.ssh(SEED.format(rows=rows))

    def measure(self, loads: Iterable[Load], rounds: int, seconds: int) -> dict[Load, list[Sample]]:
        """Measure every load once per round, so that a slow minute affects all loads."""
        found: dict[Load, list[Sample]] = {load: [] for load in loads}
        for load in found:  # warms up code, caches and connections
            measure(self.host, load, 1, self.token)
        for number in range(rounds):
            for load, samples in found.items():
                sample = measure(self.host, load, seconds, self.token)
                samples.append(sample)
                log(
                    f"{number + 1}/{rounds} {load.route:>7} {load.service:<9} {sample.rps:8.0f}/s"
                    f" {sum(sample.cpu_us.values()):6.0f} µs p99 {sample.p99_ms:6.1f} ms,"
                    f" {sample.errors} failed, others used {sample.others:.0%}"
                )
        return found

    def growth(self, rows: int, order: Iterable[int]) -> list[dict[str, Any]]:
        """Measure reads with each number of workers."""
        half = ListQuery().next_cursor(rows // 2, "0.00")
        loads = (
            Load("by key", "uncached", f"/uncached{PRODUCTS}/:id", 2000, rows),
            Load("first page", "api", f"{PRODUCTS}?page_size=20"),
            Load("page halfway", "api", f"{PRODUCTS}?page_size=20&after={half}"),
        )
        for load in loads:  # an error would be a fast response
            self.request(load.path.replace(":id", "1"))
        found: list[dict[str, Any]] = [{"route": load.route, "rows": rows, "rps": {}} for load in loads]
        for workers in order:
            self.host.set_workers(workers, "api", "uncached")
            samples = self.measure(loads, min(self.rounds, 3), max(1, self.seconds // 2))
            for one, load in zip(found, loads, strict=True):
                one["rps"][str(workers)] = report.figures(samples[load])["rps"]
        return found

    def choices(self) -> dict[str, Any]:
        """Measure each choice once per round; its service restarts before each measurement."""
        every = choices(BY_KEY, REFERENCE_BY_KEY)
        found: dict[str, list[Sample]] = {choice.name: [] for choice in every}
        for _ in range(self.rounds):
            for choice in every:
                choice.apply(self.host)
                self.wait(choice.load)
                measure(self.host, choice.load, 1, self.token)
                found[choice.name].append(measure(self.host, choice.load, self.seconds, self.token))
                log(f"{choice.name}: {found[choice.name][-1].rps:.0f}/s")
        return {name: report.figures(samples) for name, samples in found.items()}

    def run(self, parts: Iterable[str]) -> dict[str, Any]:
        """Measure the parts and return all results."""
        result: dict[str, Any] = {"rounds": self.rounds, "seconds": self.seconds, "rows": ROWS}
        self.seed(ROWS)
        self.check(LOADS)
        if "rounds" in parts:
            found = self.measure(LOADS, self.rounds, self.seconds)
            result |= report.by_route(found, SERVED)
            for route in report.ROUTES:  # the bare application responds alike to all paths
                result[route]["bare"] = result["no_io"]["bare"]
            others = [sample.others for samples in found.values() for sample in samples]
            result["others"] = {"median": median(others), "most": max(others)}
            result["memory"] = {
                who: self.host.memory(service)
                for who, service in (("ours", "api"), ("reference", "reference"), ("bare", "bare"))
            }
        if "limits" in parts:
            log("measuring the limits")
            result["limits"] = measure_limits(self.host, self.rounds, max(1, self.seconds // 2), self.token)
        if "edge_cache" in parts:
            log("enabling the edge cache")
            play("playbooks/edge.yml", "-e", json.dumps(EDGE_CACHE))
            loads = (CACHED, REFERENCE_CACHED, LIST, REFERENCE_LIST)
            found = self.measure(loads, min(self.rounds, 3), self.seconds)
            result["edge_cache"] = report.by_route(found, SERVED)
            play("playbooks/edge.yml")
        if "choices" in parts:
            result["choices"] = self.choices()
        if "growth" in parts:
            result["growth"] = []
            for turn, rows in enumerate(GROWTH):
                self.seed(rows)
                # A change of workers is slow, so each size starts with the last number of workers.
                result["growth"] += self.growth(rows, (1, 2) if turn % 2 else (2, 1))
        return result


def main() -> None:
    """Build the lab, measure, write the results and remove the lab."""
    rounds, seconds = int(os.environ.get("BENCH_ROUNDS", "5")), int(os.environ.get("BENCH_SECONDS", "8"))
    parts = os.environ.get("BENCH_PARTS", ",".join(PARTS)).split(",")
    started = time.monotonic()
    if (busy := busy_share(3)) > BUSY and os.environ.get("BENCH_BUSY") != "1":
        sys.exit(
            f"This machine is {busy:.0%} busy: wait until it is idle, or set BENCH_BUSY=1 for a trial run."
        )
    log("building the lab host")
    play("tests/bench/lab.yml")
    lab = Lab("bench")
    try:
        bench = Bench(Host(lab, "bench"), rounds, seconds)
        bench.build()
        result = bench.run(parts)
    finally:
        if os.environ.get("BENCH_KEEP") != "1":
            lab.down()
    result["minutes"] = round((time.monotonic() - started) / 60, 1)
    if {"rounds", "edge_cache"} <= set(parts):
        result["goals"] = report.goals(result)
    name = "bench" if set(PARTS) <= set(parts) else "bench-" + "-".join(parts)
    (ROOT / f".lab/{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    if "growth" in result:
        (ROOT / f".lab/{name}.svg").write_text(report.plot(result["growth"]))
    print("\n".join(report.tables(result).values()))  # noqa: T201


if __name__ == "__main__":
    main()
