"""Filters for systemd units: the sandbox and the resource limits that the units of all roles share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Options of every sandbox. A unit states only what differs.
SANDBOX: dict[str, Any] = {
    "AmbientCapabilities": "",
    "CapabilityBoundingSet": "",
    "DevicePolicy": "closed",
    "KeyringMode": "private",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "NoNewPrivileges": "yes",
    "PrivateDevices": "yes",
    "PrivateIPC": "yes",
    "PrivateTmp": "yes",
    "PrivateUsers": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHome": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectProc": "invisible",
    "ProtectSystem": "strict",
    "RemoveIPC": "yes",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
    "SystemCallFilter": ["@system-service", "~@privileged @resources"],
    "UMask": "0077",
}
# systemd adds an assignment to earlier ones, such as those of a Debian unit, unless an empty one comes first.
ADDITIVE = {"CapabilityBoundingSet", "RestrictAddressFamilies", "SystemCallFilter"}

# Resource limits by kind of unit. A percentage of memory follows the host's; an absolute limit is for a unit
# whose need does not grow with the host. If the host runs out of memory, the kernel ends processes from the
# highest OOMScoreAdjust down; sshd has -1000.
RESOURCES: dict[str, dict[str, Any]] = {
    "postgres": {"MemoryMax": "85%", "TasksMax": 512, "CPUWeight": 200, "OOMScoreAdjust": -900},
    "redis": {"TasksMax": 64, "CPUWeight": 200, "OOMScoreAdjust": -600},
    "nginx": {"MemoryMax": "25%", "TasksMax": 512, "CPUWeight": 200, "OOMScoreAdjust": -500},
    "service": {"TasksMax": 2048, "CPUWeight": 100, "OOMScoreAdjust": 200, "OOMPolicy": "continue"},
    # It ends before any instance, and as a whole.
    "job": {"TasksMax": 512, "CPUWeight": 20, "OOMScoreAdjust": 500, "OOMPolicy": "kill"},
    "prometheus": {"MemoryMax": "30%", "TasksMax": 512, "CPUWeight": 50, "OOMScoreAdjust": 300},
    "grafana": {"MemoryMax": "20%", "TasksMax": 512, "CPUWeight": 50, "OOMScoreAdjust": 300},
    "collector": {"MemoryMax": "512M", "TasksMax": 256, "CPUWeight": 50, "OOMScoreAdjust": 300},
    "monitor": {"MemoryMax": "256M", "TasksMax": 256, "CPUWeight": 20, "OOMScoreAdjust": 300},
    # The page cache that it fills counts, too.
    "backup": {"MemoryMax": "25%", "TasksMax": 256, "CPUWeight": 20, "OOMScoreAdjust": 400},
    "helper": {"MemoryMax": "64M", "TasksMax": 16, "CPUWeight": 20, "OOMScoreAdjust": 0},
    "clock": {"MemoryMax": "64M", "TasksMax": 16, "CPUWeight": 100, "OOMScoreAdjust": -500},
}


def unit_sandbox(own: Mapping[str, Any]) -> list[str]:
    """Return the lines of a sandbox for the section [Service].

    own: Options over those of SANDBOX. A list repeats its option; None leaves the option out.
    """
    return list(_lines(SANDBOX | dict(own)))


def unit_resources(kind: str, *layers: Mapping[str, Any]) -> list[str]:
    """Return the lines with the resource limits of a unit for the section [Service].

    kind: A key of RESOURCES.
    layers: Options over those of the kind, the last one wins; None leaves an option out. Unless one of
        them sets MemoryHigh, it is that of memory_high.
    """
    options = dict(RESOURCES[kind])
    for layer in layers:
        options.update(layer)
    if "MemoryHigh" not in options and (limit := options.get("MemoryMax")):
        options["MemoryHigh"] = memory_high(str(limit))
    return list(_lines(options))


def memory_high(limit: str) -> str:
    """Return 98 % of a limit of memory, such as 512M or 25%, in its own unit or a finer one.

    From there on, the kernel reclaims memory, and delays what allocates more by the square of the excess.
    At 98 % a process that leaks ends within seconds; from 90 % on, its unit would crawl for minutes before.
    """
    number, unit = (limit[:-1], limit[-1]) if limit[-1:].upper() in ("K", "M", "G", "T", "%") else (limit, "")
    if limit == "infinity":
        return limit
    finer = {"M": "K", "G": "M", "T": "G"}.get(unit.upper())
    if finer:
        return f"{int(float(number) * 1024 * 0.98)}{finer}"
    if unit == "%":
        return f"{float(number) * 0.98:.1f}".removesuffix(".0") + "%"
    return f"{int(float(number) * 0.98)}{unit}"


def _lines(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in sorted(options.items()):
        if value is None:
            continue
        values = list(value) if isinstance(value, list | tuple) else [value]
        if name in ADDITIVE and values != [""]:
            yield f"{name}="
        yield from (f"{name}={one}" for one in values)


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {f.__name__: f for f in (unit_sandbox, unit_resources, memory_high)}
