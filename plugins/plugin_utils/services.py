"""Judge the environment's services."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.fastmetal.metal.plugins.filter.redis import DATABASES, redis_number
from ansible_collections.fastmetal.metal.plugins.plugin_utils.specs import service_keys

# Certificates name an app host <service>.internal, and Redis and Postgres have users of their own.
TAKEN = {
    *("exporter", "grafana", "host", "localhost", "nginx", "postgres", "postgresql", "prometheus"),
    *("public", "redis", "root", "ssh", "www-data"),
}

# {key of an entry: the group whose hosts have that server}
SERVERS = {"database": "postgres", "cache": "redis", "queue": "redis"}


def service_faults(services: Mapping[str, Mapping[str, Any]], variables: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each fault of the services that the specs of their keys do not show.

    variables: Those of a host, as they are written, without those of the command line.
    """
    if not services:
        yield "services is empty: name a service, or take the hosts out of the group app"
    for name, entry in services.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name) or name in TAKEN:
            yield (
                f"services has the name {name!r}, which no account, unit and database can have: use at most"
                " 31 lower-case letters, digits and dashes, a letter first, and none of"
                f" {', '.join(sorted(TAKEN))}"
            )
        unknown = sorted(set(entry.get("hosts", [])) - set(variables["groups"].get("app", [])))
        if unknown:
            yield f"services.{name}.hosts has {', '.join(unknown)}, not in the group app: correct the names"
        for key, variable in service_keys().items():
            if key in entry and variable in variables:
                yield (
                    f"{variable} and services.{name}.{key} are both set: {variable} holds for all services,"
                    " so remove one"
                )
    yield from server_faults(services, variables["groups"])
    yield from number_faults(services)


def server_faults(
    services: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Iterable[str]]
) -> Iterator[str]:
    """Yield a sentence for each server that a service wants and no host has, and for unused details."""
    for name, entry in services.items():
        for key, group in SERVERS.items():
            if entry.get(key) and not groups.get(group):
                yield (
                    f"services.{name}.{key} needs a server: put a host into the group {group}, or remove"
                    f" {key}"
                )
            # A queue has the number, too.
            details = sorted(one for one in entry if one.startswith(f"{key}_") and one != "cache_number")
            if "source" in entry and details and not entry.get(key):
                yield f"services.{name} has {', '.join(details)} and no {key}: set {key} to true"


def number_faults(services: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each number of a Redis database that is out of range or taken."""
    holders: dict[int, list[str]] = {}
    for name, entry in services.items():
        if "source" in entry and (entry.get("cache") or entry.get("queue")):
            holders.setdefault(redis_number(name, entry), []).append(name)
    for number, names in holders.items():
        if not 1 <= number < DATABASES:
            yield f"services.{names[0]}.cache_number is {number}: set it between 1 and {DATABASES - 1}"
        if len(names) > 1:
            free = next(one for one in range(1, DATABASES) if one not in holders)
            yield (
                f"the services {' and '.join(names)} have the database number {number} in Redis: set"
                f" services.{names[-1]}.cache_number to another one, such as {free}"
            )


def memory_faults(limits: Mapping[str, int], postgres_percent: int, total_mb: int) -> Iterator[str]:
    """Yield a sentence if the services of a host and its Postgres may use more memory than it has.

    limits: {service: memory_mb}; 0 is no limit. Two instances of a service overlap in a release.
    """
    needed = {f"2 x {limit} MiB for {name}": 2 * limit for name, limit in limits.items() if limit}
    if needed and postgres_percent:
        needed[f"{postgres_percent} % for Postgres"] = total_mb * postgres_percent // 100
    if sum(needed.values()) > total_mb:
        yield (
            f"{' + '.join(needed)} are {sum(needed.values())} MiB, and the host has {total_mb}:"
            f" lower memory_mb in services{' or postgresql_memory_percent' if postgres_percent else ''}"
        )
