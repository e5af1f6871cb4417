"""Filters for Redis: its instances, and the numbers of the services' databases."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.fastmetal.metal.plugins.filter.entries import entry_faults
from ansible_collections.fastmetal.metal.plugins.filter.units import unit_resources
from ansible_collections.fastmetal.metal.plugins.filter.wiring import merge_entries

# Fields of an instance and of a user, as entry_faults takes them.
INSTANCE = {
    "port": "int!",
    "maxmemory_mb": "int",
    "maxmemory_policy": "str",
    "persistence": "str",
    "databases": "int",
    "loopback": "bool",
    "users": "dict",
}
USER = {"password": "str!", "other_password": "str", "keys": "list!", "channels": "list", "commands": "list"}
# Databases of an instance for services that have one each, as the wiring sets it.
DATABASES = 1024
CONFIGURATION = "/etc/redis/redis-{}.conf"
UNIT = "redis-server@{}.service"


def redis_instances(base: Mapping[str, Any], own: Mapping[str, Any], memory_mb: int) -> list[dict[str, Any]]:
    """Merge an operator's instances over the base's, and their users likewise; return both as lists.

    memory_mb: The host's memory, of which an instance without a limit gets a tenth.
    """
    instances = merge_entries(base, own)
    for instance in instances:
        known, given = ((entries.get(instance["name"]) or {}).get("users") or {} for entries in (base, own))
        instance["users"] = merge_entries(known, given)
        instance["maxmemory_mb"] = int(instance.get("maxmemory_mb", 0)) or max(64, int(memory_mb) // 10)
    return instances


def redis_instance_faults(own: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each fault in the operator's instances and their users."""
    faults = entry_faults(own, "redis_instances", base, INSTANCE)
    for name, instance in own.items():
        if isinstance(instance, Mapping) and isinstance(users := instance.get("users", {}), Mapping):
            known = (base.get(name) or {}).get("users") or {}
            faults += entry_faults(users, f"redis_instances.{name}.users", known, USER)
    return faults


def redis_files(
    instances: Iterable[Mapping[str, Any]],
    stopped: Iterable[str],
    unit: str,
    network: str,
    resources: Mapping[str, Any],
    clients_mb: int = 0,
) -> list[dict[str, Any]]:
    """Return the files of all instances for file_set; those of the stopped ones are not present.

    unit: Content of the drop-in of each unit, which gets the resource limits of its instance, too.
    network: Content of a second drop-in; empty for instances that no other host reaches.
    resources: The operator's limits, over those that follow from an instance's memory.
    clients_mb: Memory in MiB for the TLS connections of each instance, which Redis does not count as data.
    """
    entries = []
    for name, instance in [*((one["name"], one) for one in instances), *((name, None) for name in stopped)]:
        service, present = UNIT.format(name), instance is not None
        # A process that saves a snapshot copies the pages that change meanwhile, at worst all of them.
        memory = {"MemoryMax": f"{2 * instance['maxmemory_mb'] + 128 + int(clients_mb)}M"} if instance else {}
        limits = "".join(f"{line}\n" for line in unit_resources("redis", memory, resources))
        entries += [
            {
                "path": CONFIGURATION.format(name),
                "template": "redis.conf.j2",
                "variables": {"instance": instance},
                "group": "redis",
                "mode": "0640",
                "present": present,
                "units": [service],
            },
            {
                "path": f"/etc/systemd/system/{service}.d/unit.conf",
                "content": unit + limits,
                "present": present,
            },
            {
                "path": f"/etc/systemd/system/{service}.d/network-online.conf",
                "content": network,
                "present": present and bool(network),
            },
        ]
    return entries


def redis_number(service: str, entry: Mapping[str, Any]) -> int:
    """Return the number of a service's database: cache_number, or one that follows from the service's name.

    Clients without a number get database 0, so that one is the included service's.
    """
    if "source" not in entry:
        return 0
    digest = int(hashlib.sha256(service.encode()).hexdigest(), 16)
    return int(entry.get("cache_number") or 0) or digest % (DATABASES - 1) + 1


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            function.__name__: function
            for function in (
                *(redis_instances, redis_instance_faults, redis_files),
                redis_number,
            )
        }
