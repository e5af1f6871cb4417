"""Filters with which group_vars/all turns groups of hosts into role variables."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

Hostvars = Mapping[str, Mapping[str, Any]]


def addresses(hosts: Iterable[str], hostvars: Hostvars) -> list[str]:
    """Return the private address of each host."""
    return [str(hostvars[host]["private_address"]) for host in hosts]


def cidrs(hosts: Iterable[str], hostvars: Hostvars) -> list[str]:
    """Return the private address of each host as a network of one address (192.0.2.1/32, 2001:db8::1/128)."""
    return [str(ipaddress.ip_network(address)) for address in addresses(hosts, hostvars)]


def url_host(host: object) -> str:
    """Return a host as URLs and host:port have it: an IPv6 address in brackets, all else unchanged."""
    return f"[{host}]" if ":" in str(host) and not str(host).startswith("[") else str(host)


def endpoints(hosts: Iterable[str], hostvars: Hostvars, service: str) -> list[str]:
    """Return the private address of each host with a service's port from its own __ports (192.0.2.1:5432)."""
    variables = [hostvars[host] for host in hosts]
    return [f"{url_host(own['private_address'])}:{own['__ports'][service]}" for own in variables]


def sans(names: Iterable[str]) -> list[str]:
    """Return subject alternative names: IP:… for addresses, DNS:… for host names, each once."""
    return list(dict.fromkeys(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names))


def present(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are neither null nor false."""
    return {key: value for key, value in entries.items() if value is not None and value is not False}


def merge_entries(base: Mapping[str, Any], own: Mapping[str, Any], key: str = "name") -> list[dict[str, Any]]:
    """Merge an operator's entries over the base's, field by field, and return them as a list.

    Each result has its name in the field `key`. The base's order comes first. Null or false removes an entry,
    and null removes a field.
    """
    merged = []
    for name in dict.fromkeys([*base, *own]):
        layers = [entries[name] for entries in (base, own) if name in entries]
        if not present({name: layers[-1]}):
            continue
        for layer in layers:
            if not isinstance(layer, Mapping | None) and layer is not False:
                raise AnsibleFilterError(f"the entry {name} must be a dictionary, or null to remove it")
        fields = {field: value for layer in layers for field, value in (layer or {}).items()}
        merged.append({key: name} | {field: value for field, value in fields.items() if value is not None})
    return merged


def console_hosts(host: str, edges: Iterable[str], monitoring: Iterable[str]) -> dict[str, Any]:
    """Return how a host's operator tools (Grafana, Prometheus) and the edges that show them are paired.

    host: The monitoring host that has the tools: this one, or the first of the group; "" if there is none.
    edge: The edge that shows them: this one, or the first of the group; "" if there is none.
    remote: Whether edges reach the tools over the network. One edge on a host without tools is enough.
    """
    edges, monitoring = list(edges), list(monitoring)
    return {
        "host": host if host in monitoring else next(iter(monitoring), ""),
        "edge": host if host in edges else next(iter(edges), ""),
        "remote": not set(edges) <= set(monitoring),
    }


def reboot_time(host: str, hosts: Iterable[str]) -> str:
    """Return when a host may reboot: one host every 15 minutes from 04:30 to 08:15, then from the start."""
    minutes = 4 * 60 + 30 + 15 * (sorted(hosts).index(host) % 16)
    return f"{minutes // 60:02}:{minutes % 60:02}"


def pool_size(connections: int, workers: int) -> int:
    """Return the pool of one worker, 1 to 8, given the database connections that its host may use.

    Each worker has one further connection for the database monitor, and two instances overlap in a release.
    More than 8 connections for one worker measured no faster.
    """
    return max(1, min(8, int(connections) // (2 * int(workers)) - 1))


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            function.__name__: function
            for function in (
                *(addresses, cidrs, endpoints, sans, url_host),
                *(present, merge_entries, console_hosts, reboot_time, pool_size),
            )
        }
