"""Judge what belongs to the operator on a host, and what earlier runs left there."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.fastmetal.metal.plugins.module_utils.marks import MARKS, REPLACED

Marks = Mapping[str, Mapping[str, Any]]  # {role: its mark}

# Units by which a role is recognised; {} is the service's name.
UNITS = {
    "acme": ("fastmetal-acme.timer",),
    "alertmanager": ("prometheus-alertmanager.service",),
    "app": ("{}.socket", "{}@*.service", "{}-job-*", "{}-worker-*"),
    "exporter": ("prometheus-*-exporter.service", "fastmetal-exporters.service"),
    "firewall": ("fastmetal-firewall.service",),
    "grafana": ("grafana-server.service",),
    "logs": ("systemd-journal-remote.socket", "fastmetal-receive-logs.service"),
    "nginx": ("nginx.service",),
    "pgbackrest": (
        *("fastmetal-backup*.timer", "fastmetal-restore-drill.timer"),
        *("fastmetal-pgbackrest.service", "fastmetal-receive-wal.service"),
    ),
    "postgresql": ("postgresql@*-main.service", "fastmetal-postgresql-timeouts.service"),
    "prometheus": ("prometheus.service",),
    "redis": ("redis-server@cache.service", "redis-server@queue.service"),
}
# Roles whose data carries the service's name.
NAMED = ("app", "postgresql")
# Units that may hold the port of another: a package's server, and TLS in front of exporters.
REPLACES = {
    "redis-server@cache.service": ("redis-server.service",),
    **{
        f"prometheus-{name}-exporter.service": ("fastmetal-exporters.service",)
        for name in ("node", "postgres", "redis")
    },
}


def ownership_faults(probe: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each thing of the operator on a host that its roles would take over.

    probe: The result of host_probe.
    wanted: environment, services, login (who logs in), admin, admin_keys, base_accounts, accounts, roles,
        take_over.
    """
    marks, take_over = probe["marks"], wanted["take_over"]
    yield from environment_faults(marks, wanted["environment"])
    if "service" not in take_over:
        yield from service_faults(marks, wanted["services"])
    if "app" in wanted["roles"] and wanted["login"] in wanted["services"]:
        yield (
            f"{wanted['login']} is the account that you log in with, and the service's account of this name"
            " cannot log in: rename it in services, or log in with another account"
        )
        take_over = [*take_over, "app"]
    holdings = probe["holdings"] | {"app": foreign(probe["holdings"].get("app", {}), marks)}
    for role in wanted["roles"]:
        if role in take_over or (role in marks and role != "app"):
            continue
        if things := holdings.get(role):
            yield (
                f"has {listed(things)}, which the role {role} would take over: use another host, or add"
                f" {role} to preflight_take_over (copies of replaced files are kept in /{REPLACED})"
            )
    if "base" not in marks and "base" not in take_over:
        yield from key_faults(wanted["admin"], probe["keys"].get(wanted["admin"], []), wanted["admin_keys"])
    if "ssh" in wanted["roles"] and "ssh" not in marks and "ssh" not in take_over:
        others = {name for name, keys in probe["keys"].items() if keys}
        yield from login_faults(
            others - {*wanted["base_accounts"], *wanted["accounts"], wanted["admin"], wanted["login"]}
        )


def foreign(named: Mapping[str, Sequence[str]], marks: Marks) -> list[str]:
    """Return what has the name of a service that this host has not run yet. named: {service: its things}."""
    known = marks.get("app", {}).get("services", ())
    return [thing for service, things in named.items() if service not in known for thing in things]


def environment_faults(marks: Marks, environment: str) -> Iterator[str]:
    """Yield a sentence if a host belongs to another environment."""
    others = {mark["environment"] for mark in marks.values() if "environment" in mark} - {environment}
    if others:
        yield (
            f"belongs to the environment {' and '.join(sorted(others))}, not to {environment}: remove it from"
            f" this inventory, or remove /{MARKS} there if it has left that environment"
        )


def service_faults(marks: Marks, services: Iterable[str]) -> Iterator[str]:
    """Yield a sentence if a service seems to be renamed: a new, empty one would start beside it."""
    known = {name for role in NAMED for name in marks.get(role, {}).get("services", ())}
    gone, new = sorted(known - {*services}), sorted({*services} - known)
    if gone and new:
        yield (
            f"has the service {listed(gone)}, and services has {listed(new)} instead: an empty service would"
            f" start beside it, so add {listed(gone)} to services again, or remove it by"
            f" playbooks/remove_service.yml -e service={gone[0]}, or add service to preflight_take_over"
        )


def removed_services(marks: Marks, services: Iterable[str]) -> list[str]:
    """Return the services that an app host has and `services` no longer has."""
    return sorted({*marks.get("app", {}).get("services", ())} - {*services})


def key_faults(admin: str, found: Iterable[str], given: Iterable[str]) -> Iterator[str]:
    """Yield a sentence if keys of the administrator's account would be removed."""
    lost = set(found) - {word for line in given for word in line.split()}
    if admin and lost:
        yield (
            f"the account {admin} has keys that base_admin_authorized_keys lacks ({len(lost)}), and the run"
            " would remove them: add them, choose another base_admin_user, or add base to preflight_take_over"
        )


def login_faults(accounts: Iterable[str]) -> Iterator[str]:
    """Yield a sentence if accounts with authorized keys would lose their login."""
    if accounts := sorted(accounts):
        yield (
            f"{listed(accounts)} can log in with a key, and the run would refuse that: name the people in"
            " base_operators and other accounts in ssh_accounts, or add ssh to preflight_take_over"
        )


def port_faults(
    listeners: Iterable[Mapping[str, Any]], ports: Mapping[str, Iterable[int | str]]
) -> Iterator[str]:
    """Yield a sentence for each port of a unit that another one holds. ports: {unit: its ports}."""
    held: dict[int, list[Mapping[str, Any]]] = {}
    for listener in listeners:
        held.setdefault(listener["port"], []).append(listener)
    for unit, numbers in ports.items():
        own = (unit, *REPLACES.get(unit, ()))
        for port in sorted(map(int, numbers)):
            others = {
                f"{holder['program']} ({holder['unit']})" if holder["unit"] else holder["program"]
                for holder in held.get(port, [])
                if not any(fnmatch.fnmatchcase(holder["unit"], pattern) for pattern in own)
            }
            if others:
                yield (
                    f"port {port} is taken by {listed(sorted(others))}, and {unit} needs it:"
                    " stop or move that program, then run again"
                )


def closed_port_faults(
    listeners: Iterable[Mapping[str, Any]], admitted: Iterable[int | str], ours: Iterable[int | str]
) -> Iterator[str]:
    """Yield a sentence for each port of a program of the operator that the firewall would close.

    admitted: Ports and ranges of the firewall's rules. ours: Ports of units of the roles.
    """
    ranges = [[int(word) for word in str(port).split("-")] for port in admitted]
    units = [pattern for patterns in UNITS.values() for pattern in patterns if "{}" not in pattern]
    known = {*map(int, ours)}
    found: dict[int, str] = {}
    for listener in listeners:
        port, unit = listener["port"], listener["unit"]
        if listener["loopback"] or port in known or any(r[0] <= port <= r[-1] for r in ranges):
            continue
        # The roles take these over; names of neighbours need no port that is open.
        if any(fnmatch.fnmatchcase(unit, pattern) for pattern in (*units, "systemd-resolved.service")):
            continue
        found[port] = listener["program"]
    for port, program in sorted(found.items()):
        yield (
            f"{program} listens on port {port}, which the firewall would close to other hosts: admit it in"
            f" firewall_rules ({{name: {{ports: [{port}]}}}}), or add firewall to preflight_take_over"
        )


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"; of more than four the first three and the number of the others."""
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
