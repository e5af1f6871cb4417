#!/usr/bin/python3
"""Write what no exporter knows as a file for the node exporter: release, certificates, upgrades, edge's log.

One process that stays, as starting Python costs more than a look. What is costly is looked at again only when
its source has changed.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STATUSES = ("200", "429", "500", "502", "503", "504")
HELP = {
    "edge_requests_total": ("counter", "Requests answered by the edge, from its log."),
    "edge_request_duration_seconds": ("histogram", "Time to answer at the edge, from its log."),
    "edge_upstream_failures_total": (
        "counter",
        "Attempts on an application server that failed, from the log.",
    ),
    "fastmetal_certificate_expiry_timestamp_seconds": ("gauge", "When a certificate ends."),
    "fastmetal_deploy_duration_seconds": ("gauge", "How long the last deploy or other change took."),
    "fastmetal_deploy_success": ("gauge", "Whether it ended well."),
    "fastmetal_deploy_timestamp_seconds": ("gauge", "When it ended."),
    "fastmetal_reboot_required": ("gauge", "Whether an upgrade waits for a reboot."),
    "fastmetal_release_info": ("gauge", "The live release; always 1."),
    "fastmetal_upgrades_pending": ("gauge", "Packages with a newer version, by origin."),
    "nginx_connections_active": ("gauge", "Open client connections."),
    "nginx_connections_reading": ("gauge", "Connections whose request is being read."),
    "nginx_connections_waiting": ("gauge", "Idle client connections."),
    "nginx_connections_writing": ("gauge", "Connections being answered."),
    "nginx_connections_accepted": ("counter", "Accepted client connections."),
    "nginx_connections_handled": ("counter", "Handled client connections."),
    "nginx_http_requests_total": ("counter", "Requests of every listener, scrapes and probes too."),
    "nginx_up": ("gauge", "Whether nginx answers."),
}
Samples = dict[str, dict[str, float]]  # {metric: {labels as written: value}}


def labels(**values: str) -> str:
    """Return labels as the text format wants them."""
    escaped = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return "{" + ",".join(escaped) + "}"


def stamp(*paths: Path) -> str:
    """Return what changes whenever one of the files does."""
    return " ".join(str(path.stat().st_mtime_ns) for path in paths if path.exists())


def remembered(state: dict[str, Any], key: str, mark: str, work: Callable[[], Any]) -> Any:
    """Return work's result, from the last run if its mark is the same."""
    if state.get(key, {}).get("mark") != mark:
        state[key] = {"mark": mark, "result": work()}
    return state[key]["result"]


def release(service: str) -> Samples:
    """Which release is live; `current` names its instance, the release and a number."""
    current = Path(f"/srv/{service}/current")
    if not current.is_symlink():
        return {}
    name = re.sub(r"\.\d+$", "", current.readlink().name)
    return {"fastmetal_release_info": {labels(service=service, release=name): 1}}


def deploys(service: str) -> Samples:
    """How the last change of the service went, by its history on this host."""
    history = Path(f"/srv/{service}/history.jsonl")
    last: dict[str, Any] = {}
    for line in history.read_text().splitlines() if history.exists() else []:
        # A power cut or a full disk may leave half a line.
        with contextlib.suppress(ValueError):
            last = json.loads(line)
    if not last:
        return {}
    known = labels(service=service, action=last["action"], release=last.get("release", ""))
    ended = datetime.fromisoformat(last["time"]).timestamp()
    return {
        "fastmetal_deploy_success": {known: float(last["result"] == "ok")},
        "fastmetal_deploy_timestamp_seconds": {known: ended},
        "fastmetal_deploy_duration_seconds": {known: float(last.get("seconds", 0))},
    }


def expiry(path: Path) -> float:
    """Return when a certificate ends."""
    command = ["openssl", "x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return float(calendar.timegm(time.strptime(text.partition("=")[2], "%Y-%m-%d %H:%M:%SZ")))


def certificates(paths: list[str], state: dict[str, Any]) -> Samples:
    """When each certificate ends."""
    found = {}
    for name in paths:
        path = Path(name)
        if path.exists():
            end = remembered(state, name, stamp(path), lambda path=path: expiry(path))  # type: ignore[misc]
            found[labels(path=name)] = end
    return {"fastmetal_certificate_expiry_timestamp_seconds": found}


def pending() -> dict[str, int]:
    """Count the packages that an upgrade would renew."""
    command = ["apt-get", "--simulate", "--quiet=2", "-o", "Debug::NoLocking=true", "upgrade"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line for line in out.splitlines() if line.startswith("Inst ")]
    security = sum("-security" in line.lower() for line in lines)
    return {"security": security, "other": len(lines) - security}


def upgrades(state: dict[str, Any]) -> Samples:
    """What waits for an upgrade or a reboot."""
    mark = stamp(Path("/var/lib/dpkg/status"), Path("/var/lib/apt/lists"))
    counts = remembered(state, "upgrades", mark, pending)
    return {
        "fastmetal_upgrades_pending": {labels(origin=name): count for name, count in counts.items()},
        "fastmetal_reboot_required": {"": float(Path("/run/reboot-required").exists())},
    }


def nginx(url: str) -> Samples:
    """What stub_status says; the names are those of nginx's own exporter."""
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


def new_lines(log: Path, position: dict[str, int]) -> Iterator[str]:
    """Yield the lines since the last run, from the rotated file first; moves the position."""
    if not log.exists():
        return
    rotated = log.with_name(f"{log.name}.1")
    if not position:
        # History is not news: counting begins with what comes now.
        position.update(inode=log.stat().st_ino, offset=log.stat().st_size)
    if log.stat().st_ino != position["inode"]:
        if rotated.exists() and rotated.stat().st_ino == position["inode"]:
            yield from read_from(rotated, position)
        position.update(inode=log.stat().st_ino, offset=0)
    if log.stat().st_size < position["offset"]:
        position["offset"] = 0
    yield from read_from(log, position)


def read_from(file: Path, position: dict[str, int]) -> Iterator[str]:
    """Yield the whole lines of a file from the position on, and move it."""
    with file.open("rb") as stream:
        stream.seek(position["offset"])
        for line in stream:
            if not line.endswith(b"\n"):
                break
            position["offset"] += len(line)
            yield line.decode(errors="replace")


def edge(log: Path, state: dict[str, Any]) -> Samples:
    """What clients were answered: counters that go on over runs and rotations."""
    # A counter that begins above zero hides its first events from rates.
    first = {"position": {}, "status": dict.fromkeys(STATUSES, 0), "buckets": [0] * len(BUCKETS)}
    counts = state.setdefault("edge", first)
    for line in new_lines(log, counts["position"]):
        try:
            entry = json.loads(line)
            seconds, status, upstream = entry["duration"], str(entry["status"]), entry["upstream_status"]
        except (ValueError, KeyError):
            continue
        counts["status"][status] = counts["status"].get(status, 0) + 1
        counts["seconds"] = counts.get("seconds", 0) + seconds
        for index, bound in enumerate(BUCKETS):
            counts["buckets"][index] += seconds <= bound
        # Of several attempts each has its status: "502, 200".
        failed = upstream.count("502") + upstream.count("504")
        counts["failures"] = counts.get("failures", 0) + failed
    total = sum(counts["status"].values())
    buckets = {labels(le=str(bound)): n for bound, n in zip(BUCKETS, counts["buckets"], strict=True)}
    return {
        "edge_requests_total": {labels(status=key): count for key, count in sorted(counts["status"].items())},
        "edge_request_duration_seconds_bucket": buckets | {labels(le="+Inf"): total},
        "edge_request_duration_seconds_sum": {"": counts.get("seconds", 0)},
        "edge_request_duration_seconds_count": {"": total},
        "edge_upstream_failures_total": {"": counts.get("failures", 0)},
    }


def render(samples: Mapping[str, Mapping[str, float]]) -> str:
    """Return the text format."""
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


def replace(path: Path, text: str) -> None:
    """Write a file in one move, so that no reader sees half of it."""
    candidate = path.with_name(f".{path.name}.new")
    candidate.write_text(text)
    candidate.chmod(0o644)
    candidate.rename(path)


def notify(state: str) -> None:
    """Tell systemd; see sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(os.environ["NOTIFY_SOCKET"])
        manager.send(state.encode())


def collect(settings: dict[str, Any], state: dict[str, Any]) -> Samples:
    """Return all figures; the state carries over to the next time what they are counted from."""
    samples = certificates(settings["certificates"], state) | upgrades(state)
    if settings["service"]:
        samples |= release(settings["service"]) | deploys(settings["service"])
    if settings["nginx_status"]:
        samples |= nginx(settings["nginx_status"])
    if settings["edge_log"]:
        samples |= edge(Path(settings["edge_log"]), state)
    return samples


def main() -> None:
    """Collect for ever; the configuration is the only argument."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    directory = Path(os.environ["STATE_DIRECTORY"])
    kept = directory / "state.json"
    state = json.loads(kept.read_text()) if kept.exists() else {}
    while True:
        samples = collect(settings, state)
        replace(directory / "host.prom", render(samples))
        replace(kept, json.dumps(state))
        notify("READY=1\nWATCHDOG=1")
        time.sleep(settings["seconds"])


if __name__ == "__main__":
    main()
