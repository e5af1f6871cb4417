#!/usr/bin/python3
"""Write metrics of a host that no exporter has: live release, last deploy, certificates, upgrades, Nginx.

Runs as one process, because starting Python costs more than a collection. Expensive parts are collected again
only when their source has changed.
"""

from __future__ import annotations

import calendar
import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from files import write_atomically
from follow import Follower
from history import read_history

SERVICES = Path("/srv")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STATUSES = ("200", "429", "500", "502", "503", "504")
EDGE_METRICS = (
    "edge_requests_total",
    *(f"edge_request_duration_seconds_{part}" for part in ("bucket", "sum", "count")),
    "edge_upstream_failures_total",
)
HELP = {
    "edge_requests_total": ("counter", "Requests answered by the edge, from its access log, by service."),
    "edge_request_duration_seconds": ("histogram", "Response time at the edge, from its access log."),
    "edge_upstream_failures_total": (
        "counter",
        "Failed attempts on an application server, from the access log.",
    ),
    "fastmetal_certificate_expiry_timestamp_seconds": ("gauge", "When the certificate expires."),
    "fastmetal_deploy_duration_seconds": ("gauge", "Duration of the last entry in the history."),
    "fastmetal_deploy_success": ("gauge", "Whether the last entry in the history succeeded."),
    "fastmetal_deploy_timestamp_seconds": ("gauge", "When the last entry in the history ended."),
    "fastmetal_reboot_required": ("gauge", "Whether an upgrade requires a reboot."),
    "fastmetal_release_info": ("gauge", "The live release; always 1."),
    "fastmetal_upgrades_pending": ("gauge", "Packages with a newer version, by origin."),
    "nginx_connections_active": ("gauge", "Open client connections."),
    "nginx_connections_reading": ("gauge", "Connections whose request is being read."),
    "nginx_connections_waiting": ("gauge", "Idle client connections."),
    "nginx_connections_writing": ("gauge", "Connections whose response is being written."),
    "nginx_connections_accepted": ("counter", "Accepted client connections."),
    "nginx_connections_handled": ("counter", "Handled client connections."),
    "nginx_http_requests_total": ("counter", "Requests of all listeners, with scrapes and probes."),
    "nginx_up": ("gauge", "Whether Nginx answers."),
}
Samples = dict[str, dict[str, float]]  # {metric: {labels in the text format: value}}


def labels(**values: str) -> str:
    """Return labels in the text format."""
    escaped = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return "{" + ",".join(escaped) + "}"


def stamp(*paths: Path) -> str:
    """Return a text that changes with the modification time of any of the files."""
    return " ".join(str(path.stat().st_mtime_ns) for path in paths if path.exists())


def remembered(state: dict[str, Any], key: str, mark: str, work: Callable[[], Any]) -> Any:
    """Return the result of work, or the last one if the mark is unchanged."""
    if state.get(key, {}).get("mark") != mark:
        state[key] = {"mark": mark, "result": work()}
    return state[key]["result"]


def release(service: str) -> Samples:
    """Return the live release; `current` links to its instance, named by release and number."""
    current = SERVICES / service / "current"
    if not current.is_symlink():
        return {}
    name = re.sub(r"\.\d+$", "", current.readlink().name)
    return {"fastmetal_release_info": {labels(service=service, release=name): 1}}


def deploys(service: str) -> Samples:
    """Return the result of the last entry in the service's history on this host."""
    entries = read_history(SERVICES / service / "history.jsonl")
    if not entries:
        return {}
    last = entries[-1]
    known = labels(service=service, action=last["action"], release=last.get("release", ""))
    ended = datetime.fromisoformat(last["time"]).timestamp()
    return {
        "fastmetal_deploy_success": {known: float(last["result"] == "ok")},
        "fastmetal_deploy_timestamp_seconds": {known: ended},
        "fastmetal_deploy_duration_seconds": {known: float(last.get("seconds", 0))},
    }


def expiry(path: Path) -> float:
    """Return when a certificate expires, in seconds since 1970."""
    command = ["openssl", "x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return float(calendar.timegm(time.strptime(text.partition("=")[2], "%Y-%m-%d %H:%M:%SZ")))


def certificates(paths: list[str], state: dict[str, Any]) -> Samples:
    """Return when each certificate expires."""
    found = {}
    for name in paths:
        path = Path(name)
        if path.exists():
            found[labels(path=name)] = remembered(state, name, stamp(path), functools.partial(expiry, path))
    return {"fastmetal_certificate_expiry_timestamp_seconds": found}


def pending_upgrades() -> dict[str, int]:
    """Return the number of packages with a newer version, {origin: number}."""
    command = ["apt-get", "--simulate", "--quiet=2", "-o", "Debug::NoLocking=true", "upgrade"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line for line in out.splitlines() if line.startswith("Inst ")]
    security = sum("-security" in line.lower() for line in lines)
    return {"security": security, "other": len(lines) - security}


def upgrades(state: dict[str, Any]) -> Samples:
    """Return the pending upgrades and whether a reboot is required."""
    mark = stamp(Path("/var/lib/dpkg/status"), Path("/var/lib/apt/lists"))
    counts = remembered(state, "upgrades", mark, pending_upgrades)
    return {
        "fastmetal_upgrades_pending": {labels(origin=name): count for name, count in counts.items()},
        "fastmetal_reboot_required": {"": float(Path("/run/reboot-required").exists())},
    }


def nginx(url: str) -> Samples:
    """Return Nginx's stub_status, with the metric names of prometheus-nginx-exporter."""
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:  # noqa: S310 - an address of this host
            words = answer.read().decode().split()
    except OSError:
        return {"nginx_up": {"": 0}}
    numbers = [float(word) for word in words if word.isdigit()]
    names = ("active", "accepted", "handled", "requests", "reading", "writing", "waiting")
    found = {f"nginx_connections_{name}": {"": number} for name, number in zip(names, numbers, strict=True)}
    found["nginx_http_requests_total"] = found.pop("nginx_connections_requests")
    return {"nginx_up": {"": 1}, **found}


class Edge:
    """Counters of the edge's responses by service that continue over restarts and log rotations.

    Responses of no service, such as those to unknown host names, have an empty label.
    """

    def __init__(self, log: Path, services: list[str], counts: dict[str, Any]) -> None:
        """Continue with the counts of an earlier run, and keep them up to date for the next one."""
        known = counts.get("services", {})
        # From 0: rate() misses the increase of a counter that first appears with a value.
        self.services = {name: known.get(name) or self._zero() for name in ["", *services]}
        counts["services"] = self.services
        self.counts = counts
        self.follower = Follower(log, counts.get("positions"))

    @staticmethod
    def _zero() -> dict[str, Any]:
        return {
            "status": dict.fromkeys(STATUSES, 0),
            "buckets": [0] * len(BUCKETS),
            "seconds": 0.0,
            "failures": 0,
        }

    def samples(self) -> Samples:
        """Count the new lines and return the totals."""
        for line in self.follower.new_lines():
            try:
                self._count(json.loads(line.decode(errors="replace")))
            except (ValueError, KeyError):
                continue
        self.counts["positions"] = self.follower.positions
        found: Samples = {name: {} for name in EDGE_METRICS}
        for service, counts in self.services.items():
            requests, buckets, seconds, total, failures = found.values()
            answers = sum(counts["status"].values())
            for status, count in sorted(counts["status"].items()):
                requests[labels(service=service, status=status)] = count
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), (*counts["buckets"], answers), strict=True):
                buckets[labels(service=service, le=bound)] = count
            seconds[labels(service=service)] = counts["seconds"]
            total[labels(service=service)] = answers
            failures[labels(service=service)] = counts["failures"]
        return found

    def _count(self, entry: dict[str, Any]) -> None:
        seconds, status, upstream = entry["duration"], str(entry["status"]), entry["upstream_status"]
        counts = self.services.setdefault(entry.get("service", ""), self._zero())
        counts["status"][status] = counts["status"].get(status, 0) + 1
        counts["seconds"] += seconds
        for index, bound in enumerate(BUCKETS):
            counts["buckets"][index] += seconds <= bound
        # After a retry it holds the status of each attempt: "502, 200".
        counts["failures"] += upstream.count("502") + upstream.count("504")


def render(samples: Mapping[str, Mapping[str, float]]) -> str:
    """Return samples in the text format."""
    lines = []
    described = set()
    for name, values in samples.items():
        family = name if name in HELP else name.rpartition("_")[0]
        if family not in described:
            kind, text = HELP[family]
            lines += [f"# HELP {family} {text}", f"# TYPE {family} {kind}"]
            described.add(family)
        lines += [f"{name}{labelled} {value:.15g}" for labelled, value in values.items()]
    return "\n".join(lines) + "\n"


def notify(state: str) -> None:
    """Send a state to systemd; see sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(os.environ["NOTIFY_SOCKET"])
        manager.send(state.encode())


def collect(settings: dict[str, Any], state: dict[str, Any], edge: Edge | None) -> Samples:
    """Return all samples; state holds what the next collection needs of this one."""
    samples = certificates(settings["certificates"], state) | upgrades(state)
    for service in settings["services"]:
        for metric, values in (release(service) | deploys(service)).items():
            samples.setdefault(metric, {}).update(values)
    if settings["nginx_status"]:
        samples |= nginx(settings["nginx_status"])
    if edge:
        samples |= edge.samples()
    return samples


def main() -> None:
    """Collect until the process is stopped; the only argument is the path of the configuration."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    directory = Path(os.environ["STATE_DIRECTORY"])
    state_file = directory / "state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else {}
    edge = None
    if settings["edge_log"]:
        edge = Edge(Path(settings["edge_log"]), settings["edge_services"], state.setdefault("edge", {}))
    while True:
        samples = collect(settings, state, edge)
        # Without fsync: the next collection replaces both files anyway.
        write_atomically(directory / "host.prom", render(samples), sync=False)
        write_atomically(state_file, json.dumps(state), sync=False)
        notify("READY=1\nWATCHDOG=1")
        time.sleep(settings["seconds"])


if __name__ == "__main__":
    main()
