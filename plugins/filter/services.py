"""Filters with which group_vars/all reads the environment's services."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Entry = dict[str, Any]


def service_entries(
    services: Mapping[str, Entry | None], defaults: Entry, included: Entry
) -> dict[str, Entry]:
    """Return the entry of each service with its defaults; an entry without a source is the included service.

    Values stay lazy: an entry's templates may use objects that are made from the other keys of the entry.
    """
    merged = {}
    for name in services:
        entry = services[name] or {}
        merged[name] = defaults.copy()
        for layer in [entry] if "source" in entry else [included, entry]:
            dict.update(merged[name], dict.items(layer))
    return merged


def services_on(services: Mapping[str, Entry], host: str) -> list[str]:
    """Return the names of the services that run on an app host; an entry without hosts runs on all."""
    return [name for name in services if not services[name]["hosts"] or host in services[name]["hosts"]]


def service_hosts(entry: Entry, hosts: Iterable[str]) -> list[str]:
    """Return the app hosts of a service, in the order of the inventory."""
    return [host for host in hosts if not entry["hosts"] or host in entry["hosts"]]


def services_with(services: Mapping[str, Entry], key: str) -> list[str]:
    """Return the names of the services whose entry has a value other than empty or false for a key."""
    return [name for name in services if services[name][key]]


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        functions = (service_entries, services_on, service_hosts, services_with)
        return {function.__name__: function for function in functions}
