"""Judge the environment's services."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.fastmetal.metal.plugins.plugin_utils.specs import service_keys

# Certificates name an app host <service>.internal, and Redis and Postgres have users of their own.
TAKEN = {"exporter", "grafana", "host", "localhost", "postgres", "prometheus", "public", "redis", "root"}


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
