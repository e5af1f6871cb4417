"""One measurement: a load on one service, its results, and the CPU time it uses on the host."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import ROOT, Lab

CONNECTIONS = 64
# The lab host's cores; wrk gets the machine's other cores.
CORES = (0, 1)
UNITS = {
    "postgres": "postgresql@*.service",
    "redis": "redis-server@*.service",
    "nginx": "nginx.service",
    "journal": "systemd-journald.service",
}
# The units whose CPU time counts as cost; the journal's is only shown.
COUNTED = ("app", "postgres", "redis", "nginx")


@dataclass(frozen=True)
class Load:
    """A route of one service, with wrk's parameters for it."""

    route: str
    service: str
    path: str
    keys: int = 1
    rows: int = 1
    method: str = "GET"


@dataclass(frozen=True)
class Sample:
    """The results of one run of wrk."""

    rps: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us: dict[str, float]
    others: float  # share of the machine that neither the host nor wrk used


def parse_wrk(output: str) -> dict[str, int]:
    """Return the results that load.lua prints; raise RuntimeError if there are none."""
    lines = [line for line in output.splitlines() if line.startswith('{"requests"')]
    if not lines:
        raise RuntimeError(f"wrk printed no results: {output.strip()[-500:]}")
    figures: dict[str, int] = json.loads(lines[-1])
    return figures


def parse_usage(cpu_stat: str) -> int:
    """Return the CPU time in a cgroup's cpu.stat, in microseconds."""
    return int(dict(line.split() for line in cpu_stat.splitlines())["usage_usec"])


def _machine_busy() -> float:
    """Return the CPU seconds of all cores since the machine started."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def busy_share(seconds: float) -> float:
    """Return the share of the machine's CPU time that is used during some seconds."""
    before = _machine_busy()
    time.sleep(seconds)
    return (_machine_busy() - before) / seconds / (os.cpu_count() or 1)


class Host:
    """The lab host, measured through the machine's cgroups."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        spec = importlib.util.spec_from_file_location("labctl", ROOT / "roles/lab/files/labctl.py")
        assert spec is not None
        assert spec.loader is not None
        labctl: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(labctl)
        self._init = labctl.Lab(lab.name).init
        self._cgroup: Path = labctl.Lab(lab.name).cgroup(name)

    def ssh(self, command: str) -> str:
        """Run a command on the host."""
        return self.lab.ssh(self.name, command)

    @property
    def address(self) -> str:
        """Return the host's IP address."""
        return str(self.lab.state["hosts"][self.name]["address"])

    def pin(self) -> None:
        """Pin the host's PID 1, and so all processes that it starts, to CORES."""
        os.sched_setaffinity(self._init(self.name), CORES)

    def usage(self, pattern: str = "") -> int:
        """Return the CPU time of a unit or of the whole host, in microseconds."""
        found = self._cgroup.glob(f"payload/system.slice/**/{pattern}") if pattern else [self._cgroup]
        return sum(parse_usage((path / "cpu.stat").read_text()) for path in found)

    def usages(self, service: str) -> dict[str, int]:
        """Return the CPU time of this service and of each server, in microseconds."""
        units = {"app": f"{service}@*.service"} | UNITS
        return {name: self.usage(pattern) for name, pattern in units.items()}

    def processes(self, service: str) -> list[str]:
        """Return the PIDs of a service's instances."""
        return [
            pid
            for path in self._cgroup.glob(f"payload/system.slice/**/{service}@*.service")
            for pid in (path / "cgroup.procs").read_text().split()
        ]

    def memory(self, service: str) -> dict[str, float]:
        """Return the number of a service's processes and their PSS in MB, which counts shared memory once."""
        pids = self.processes(service)
        rollups = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
        kilobytes = sum(map(int, re.findall(r"^Pss: +(\d+)", rollups, re.MULTILINE)))
        return {"processes": len(pids), "pss_mb": round(kilobytes / 1024, 1)}

    def set_workers(self, workers: int, *services: str) -> None:
        """Set each service's number of workers with Gunicorn's signals TTIN and TTOU."""
        while wrong := {name: n for name in services if (n := len(self.processes(name)) - 1) != workers}:
            for name, found in wrong.items():
                signal = "TTOU" if found > workers else "TTIN"
                self.ssh(f"systemctl kill --kill-whom=main --signal={signal} '{name}@*.service'")
            time.sleep(3)  # a start takes a second; a stop waits for keep-alive connections


def wrk_cores() -> tuple[int, ...]:
    """Return the cores for wrk: all but the host's, or the host's if there are no others."""
    rest = tuple(sorted(os.sched_getaffinity(0) - set(CORES)))
    return rest or CORES


def measure(host: Host, load: Load, seconds: int, token: str) -> Sample:
    """Load a service for some seconds and return the results."""
    before, whole, busy, started = host.usages(load.service), host.usage(), _machine_busy(), time.monotonic()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [
            *("taskset", "--cpu-list", ",".join(map(str, wrk_cores()))),
            *("wrk", "--threads", "2", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s"),
            *("--script", str(Path(__file__).with_name("load.lua")), f"https://{host.address}", "--"),
            *(load.method, load.path, str(load.keys), str(load.rows)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "BENCH_TOKEN": token},
    )
    after = host.usages(load.service)
    figures = parse_wrk(done.stdout + done.stderr)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = ended.ru_utime + ended.ru_stime - children.ru_utime - children.ru_stime
    others = _machine_busy() - busy - own - (host.usage() - whole) / 1e6
    requests = max(figures["requests"], 1)
    return Sample(
        rps=figures["requests"] * 1e6 / figures["microseconds"],
        p50_ms=figures["p50_us"] / 1000,
        p99_ms=figures["p99_us"] / 1000,
        errors=figures["refused"] + figures["broken"],
        cpu_us={name: (after[name] - before[name]) / requests for name in after},
        others=max(0.0, others / (time.monotonic() - started) / (os.cpu_count() or 1)),
    )
