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
import ssl
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
    "edge_limited_requests_total",
)
HELP = {
    "edge_requests_total": ("counter", "Requests answered by the edge, from its access log, by service."),
    "edge_request_duration_seconds": ("histogram", "Response time at the edge, from its access log."),
    "edge_upstream_failures_total": (
        "counter",
        "Failed attempts on an application server, from the access log.",
    ),
    "edge_limited_requests_total": (
        "counter",
        "Requests above a limit of the edge, from its access log: refused, or counted in a dry run.",
    ),
    "fastmetal_certificate_expiry_timestamp_seconds": ("gauge", "When the certificate expires."),
    "fastmetal_certificate_start_timestamp_seconds": ("gauge", "When the certificate became valid."),
    "fastmetal_served_certificate_expiry_timestamp_seconds": (
        "gauge",
        "When the certificate that Nginx serves for a name expires.",
    ),
    "fastmetal_served_certificate_start_timestamp_seconds": (
        "gauge",
        "When the certificate that Nginx serves for a name became valid.",
    ),
    "fastmetal_certificate_failed_attempts": ("gauge", "Failed attempts to renew since the last success."),
    "fastmetal_certificate_failures_total": ("counter", "Failed attempts to issue or renew the certificate."),
    "fastmetal_certificate_next_renewal_timestamp_seconds": (
        "gauge",
        "When the certificate will be renewed, or the next attempt after a failure.",
    ),
    "fastmetal_backup_archive_behind_bytes": ("gauge", "Finished WAL that is in no repository."),
    "fastmetal_backup_archive_behind_seconds": ("gauge", "Age of the oldest finished WAL in no repository."),
    "fastmetal_backup_measured_timestamp_seconds": ("gauge", "When the backups were last measured."),
    "fastmetal_backup_oldest_timestamp_seconds": ("gauge", "When the oldest backup ended."),
    "fastmetal_backup_repository_faults": ("gauge", "Repositories that do not answer as they should."),
    "fastmetal_backup_repository_free_bytes": ("gauge", "Free space of a repository on this host."),
    "fastmetal_backup_repository_size_bytes": ("gauge", "Space of the file system of such a repository."),
    "fastmetal_backup_size_bytes": ("gauge", "Size of the cluster at the newest backup."),
    "fastmetal_backup_timestamp_seconds": ("gauge", "When the newest backup ended."),
    "fastmetal_deploy_duration_seconds": ("gauge", "Duration of the last entry in the history."),
    "fastmetal_deploy_success": ("gauge", "Whether the last entry in the history succeeded."),
    "fastmetal_deploy_timestamp_seconds": ("gauge", "When the last entry in the history ended."),
    "fastmetal_reboot_required": ("gauge", "Whether an upgrade requires a reboot."),
    "fastmetal_release_info": ("gauge", "The live release; always 1."),
    "fastmetal_upgrades_pending": ("gauge", "Packages with a newer version, by origin."),
    "fastmetal_restore_drill_duration_seconds": ("gauge", "Duration of the last restore drill."),
    "fastmetal_restore_drill_success": ("gauge", "Whether the last restore drill succeeded."),
    "fastmetal_restore_drill_timestamp_seconds": ("gauge", "When the last restore drill began."),
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


def validity(text: str) -> list[float]:
    """Return when a certificate (PEM) becomes valid and when it expires, in seconds since 1970."""
    command = ["openssl", "x509", "-noout", "-startdate", "-enddate", "-dateopt", "iso_8601"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, input=text)
    dates = [line.partition("=")[2] for line in done.stdout.splitlines()]
    return [float(calendar.timegm(time.strptime(date, "%Y-%m-%d %H:%M:%SZ"))) for date in dates]


def certificates(paths: list[str], state: dict[str, Any]) -> Samples:
    """Return when each certificate becomes valid and expires."""
    starts, ends = {}, {}
    for name in paths:
        path = Path(name)
        if path.exists():
            work = functools.partial(validity, path.read_text())
            starts[labels(path=name)], ends[labels(path=name)] = remembered(state, name, stamp(path), work)
    return {
        "fastmetal_certificate_start_timestamp_seconds": starts,
        "fastmetal_certificate_expiry_timestamp_seconds": ends,
    }


def served_certificate(name: str) -> str:
    """Return the certificate (PEM) with which Nginx on this host answers for a name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", 443), timeout=3) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")


def served(names: list[str], state: dict[str, Any]) -> Samples:
    """Return when each certificate becomes valid and expires that clients get; looks once a minute."""
    starts, ends = {}, {}
    for name in names:
        try:
            text = remembered(
                state, f"served {name}", str(time.time() // 60), functools.partial(served_certificate, name)
            )
        except OSError:
            continue  # nginx_up reports a server that does not answer.
        dates = remembered(state, f"served dates {name}", text, functools.partial(validity, text))
        starts[labels(name=name)], ends[labels(name=name)] = dates
    return {
        "fastmetal_served_certificate_start_timestamp_seconds": starts,
        "fastmetal_served_certificate_expiry_timestamp_seconds": ends,
    }


def renewals(file: Path) -> Samples:
    """Return the attempts of the role acme to renew each certificate."""
    if not file.exists():
        return {}
    entries = json.loads(file.read_text()).items()
    metrics = {
        "failed_attempts": "failed",
        "failures_total": "failures",
        "next_renewal_timestamp_seconds": "next",
    }
    return {
        f"fastmetal_certificate_{metric}": {labels(certificate=name): entry[key] for name, entry in entries}
        for metric, key in metrics.items()
    }


def backups(file: Path) -> Samples:
    """Return what the role pgbackrest knows about the backups and the last drill."""
    if not file.exists():
        return {}
    known = json.loads(file.read_text())
    found: Samples = {
        "fastmetal_backup_measured_timestamp_seconds": {"": known["time"]},
        "fastmetal_backup_repository_faults": {"": len(known["faults"])},
    }
    for repository, entry in known["backups"].items():
        for metric, key in {
            "timestamp_seconds": "last",
            "oldest_timestamp_seconds": "oldest",
            "size_bytes": "size",
        }.items():
            found.setdefault(f"fastmetal_backup_{metric}", {})[labels(repository=repository)] = entry[key]
    for key in ("free", "size"):
        found[f"fastmetal_backup_repository_{key}_bytes"] = {
            labels(repository=repository): space[key] for repository, space in known["spaces"].items()
        }
    for key in ("behind_bytes", "behind_seconds"):
        if key in known:
            found[f"fastmetal_backup_archive_{key}"] = {"": known[key]}
    if drill := known["drill"]:
        found["fastmetal_restore_drill_timestamp_seconds"] = {"": drill["begun"]}
        found["fastmetal_restore_drill_duration_seconds"] = {"": drill["seconds"]}
        found["fastmetal_restore_drill_success"] = {"": float(drill["result"] == "ok")}
    return found


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
        self.services = {name: self._zero() | known.get(name, {}) for name in ["", *services]}
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
            "limited": dict.fromkeys(("refused", "dry_run"), 0),
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
            requests, buckets, seconds, total, failures, limited = found.values()
            answers = sum(counts["status"].values())
            for status, count in sorted(counts["status"].items()):
                requests[labels(service=service, status=status)] = count
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), (*counts["buckets"], answers), strict=True):
                buckets[labels(service=service, le=bound)] = count
            seconds[labels(service=service)] = counts["seconds"]
            total[labels(service=service)] = answers
            failures[labels(service=service)] = counts["failures"]
            for result, count in counts["limited"].items():
                limited[labels(service=service, result=result)] = count
        return found

    def _count(self, entry: dict[str, Any]) -> None:
        seconds, status, upstream = entry["duration"], str(entry["status"]), entry["upstream_status"]
        counts = self.services.setdefault(entry.get("service", ""), self._zero())
        # Of refusals, nginx logs a sample.
        weight = entry.get("weight", 1)
        counts["status"][status] = counts["status"].get(status, 0) + weight
        counts["seconds"] += weight * seconds
        for index, bound in enumerate(BUCKETS):
            counts["buckets"][index] += weight * (seconds <= bound)
        limits = {entry.get("limit"), entry.get("limit_connections")}
        for outcome, result in (("REJECTED", "refused"), ("REJECTED_DRY_RUN", "dry_run")):
            counts["limited"][result] += weight * (outcome in limits)
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
    samples |= served(settings["served_names"], state)
    if settings["acme_state"]:
        samples |= renewals(Path(settings["acme_state"]))
    if settings["backups"]:
        samples |= backups(Path(settings["backups"]))
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
