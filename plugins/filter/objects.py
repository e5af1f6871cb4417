"""Filters that turn the services into databases, roles, Redis users and the objects of their templates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Mapping
from typing import Any
from urllib.parse import quote

from ansible_collections.fastmetal.metal.plugins.filter.redis import redis_number

Entry = Mapping[str, Any]
Services = Mapping[str, Entry]

# What the user of a cache or a queue may do, besides selecting its database. KEYS and SORT see its own keys,
# RQ needs CLIENT LIST, and MOVE and COPY could write to other databases.
COMMANDS = ["+@all", "-@admin", "-@dangerous", "+info", "+keys", "+sort", "+client|list", "-move", "-copy"]


def derive_secret(secret: str, purpose: str, service: str) -> str:
    """Return 64 hex digits for one purpose of one service, made from a secret that no service gets."""
    return hashlib.sha256(f"{purpose} {service} {secret}".encode()).hexdigest()


def postgres_object(address: str, name: str, user: str, password: str, driver: str) -> dict[str, Any]:
    """Return what a template says of a database: its URL and the parts of the URL.

    address: host:port; a directory as host is that of the server's socket.
    driver: The scheme of `driver_url`, such as postgresql+asyncpg; every client knows that of `url`.
    """
    host, _, port = address.rpartition(":")
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    target = (
        f"{login}@/{name}?host={host}&port={port}" if host.startswith("/") else f"{login}@{address}/{name}"
    )
    return {
        "url": f"postgresql://{target}",
        "driver_url": f"{driver}://{target}",
        "host": host.strip("[]"),
        "port": int(port),
        "name": name,
        "user": user,
        "password": password,
    }


def redis_object(
    address: str, user: str, password: str, number: int, prefix: str = "", ca: str = ""
) -> dict[str, Any]:
    """Return what a template says of a cache or a queue: its URL and the parts of the URL.

    ca: Path of the CA certificate; empty for a server without TLS.
    """
    host, _, port = address.rpartition(":")
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    # The names are those of redis-py; Celery refuses a URL without the first one.
    query = f"?ssl_cert_reqs=required&ssl_ca_certs={ca}" if ca else ""
    return {
        "url": f"{'rediss' if ca else 'redis'}://{login}@{address}/{number}{query}",
        "host": host.strip("[]"),
        "port": int(port),
        "username": user,
        "password": password,
        "number": number,
        "prefix": prefix,
    }


def is_own(entry: Entry) -> bool:
    """Return whether the entry is an application of the operator, not the included service."""
    return "source" in entry


def own_services(services: Services, key: str) -> dict[str, Entry]:
    """Return the operator's own applications that have a key, such as cache."""
    return {name: entry for name, entry in services.items() if is_own(entry) and entry[key]}


def service_connections(services: Services, available: int) -> dict[str, int]:
    """Return how many connections each service may have: its own number, or an equal share of the rest."""
    wanted = {
        name: int(entry["database_connections"]) for name, entry in services.items() if entry["database"]
    }
    sharing = [number for number in wanted.values() if not number]
    share = max(1, (available - sum(wanted.values())) // max(1, len(sharing)))
    return {name: number or share for name, number in wanted.items()}


def service_databases(services: Services, here: Container[str]) -> dict[str, dict[str, Any]]:
    """Return the database of each service that has one, as the role postgresql takes it.

    here: The services on this host, which connect over loopback, but for the included one.
    """
    databases = {}
    for name, entry in services.items():
        if not entry["database"]:
            continue
        owner = f"{name}_owner"
        roles = {
            "separate": {"owner": owner, "app_role": name},
            "single": {"owner": name, "migration_role": owner},
        }
        optional = {
            "extensions": entry["database_extensions"],
            "loopback": is_own(entry) and name in here,
        }
        databases[name] = roles[entry["database_role"]] | {
            field: value for field, value in optional.items() if value
        }
    return databases


def service_roles(
    services: Services, included: Mapping[str, str], secret: str, connections: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Return the roles of the services' databases, as the role postgresql takes them.

    included: Passwords of the included service's roles: {owner, app}.
    connections: {service: its limit}.
    """
    roles: dict[str, dict[str, Any]] = {}
    for name, entry in services.items():
        if not entry["database"]:
            continue
        own = is_own(entry)
        roles[f"{name}_owner"] = {
            "password": derive_secret(secret, "owner", name) if own else included["owner"]
        }
        roles[name] = {"password": derive_secret(secret, "database", name) if own else included["app"]}
        if not own:
            # The service's database monitor reads the state of every session.
            roles[name] |= {"member_of": ["pg_read_all_stats"], "pinned": True}
        # The rest is for migrations and operators.
        roles[name]["connection_limit"] = connections[name]
    return roles


def service_redis_users(
    services: Services, key: str, included: str, secret: str, other: str = ""
) -> dict[str, dict[str, Any]]:
    """Return the Redis users of the services that have a key (cache or queue), as the role redis takes them.

    included: Password of the included service's user.
    other: A second password of that user, while one replaces the other.
    """
    users: dict[str, dict[str, Any]] = {}
    for name, entry in services.items():
        if not entry[key]:
            continue
        if not is_own(entry):
            users[name] = {"password": included, "keys": [f"{name}:*"], "channels": [f"{name}:*"]}
            users[name] |= {"other_password": other} if other else {}
            continue
        prefix = entry["cache_prefix"] if key == "cache" else ""
        users[name] = {
            "password": derive_secret(secret, key, name),
            "keys": [f"{prefix}*"],
            "channels": (entry["cache_channels"] if key == "cache" else []) or [f"{prefix}*"],
            "commands": [*COMMANDS, "-select", f"+select|{redis_number(name, entry)}"],
        }
    return users


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            function.__name__: function
            for function in (
                *(derive_secret, postgres_object, redis_object, own_services),
                *(service_connections, service_databases, service_roles, service_redis_users),
            )
        }
