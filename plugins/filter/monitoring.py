"""Filters with which group_vars/all tells Prometheus what to watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.fastmetal.metal.plugins.filter.nginx_sites import root_path
from ansible_collections.fastmetal.metal.plugins.filter.services import service_hosts
from ansible_collections.fastmetal.metal.plugins.filter.wiring import merge_entries, url_host

Hostvars = Mapping[str, Mapping[str, Any]]
Target = dict[str, Any]


def scrape_targets(hosts: Iterable[str], hostvars: Hostvars, exporter: str) -> list[Target]:
    """Return the Prometheus target of each host, from the host's own __scrape_addresses and exporter_tls."""
    # Each access to hostvars merges all variables of that host anew.
    return [_target(str(host), hostvars[host], exporter) for host in hosts]


def service_targets(hosts: Iterable[str], hostvars: Hostvars) -> list[Target]:
    """Return the Prometheus targets of the services on some hosts; those without a metrics path have none.

    The private listener picks the service by the TLS server name, or on loopback by the path's first segment.
    """
    targets = []
    for host in hosts:
        variables = hostvars[host]
        for name in variables["__host_services"]:
            entry = variables["__services"][name]
            if not entry["metrics_path"]:
                continue
            target = _target(str(host), variables, "app") | {"labels": {"service": name}}
            if target["scheme"] == "https":
                path, target["server_name"] = root_path(entry) + entry["metrics_path"], f"{name}.internal"
            else:
                path = f"/{name}{entry['metrics_path']}"
            targets.append(target | {"path": path})
    return targets


def redis_targets(hosts: Iterable[str], hostvars: Hostvars) -> list[Target]:
    """Return the Prometheus targets of the Redis instances on some hosts; one exporter asks all of a host."""
    targets = []
    for host in hosts:
        variables = hostvars[host]
        target = _target(str(host), variables, "redis")
        for name in variables["exporter_redis_instances"]:
            socket = f"unix:///run/redis-{name}/redis-server.sock"
            other = {"path": "/scrape", "params": {"target": socket}} if name != "cache" else {}
            targets.append(target | {"labels": {"server": name}} | other)
    return targets


def service_probes(hosts: Iterable[str], hostvars: Hostvars) -> dict[str, Any]:
    """Return the probes of all services through their names at some edges."""
    probes: dict[str, Any] = {}

    def add(kind: str, service: str, module: str, urls: Iterable[str]) -> None:
        probe = probes.get(
            f"{kind}-{service}", {"module": module, "urls": [], "labels": {"service": service}}
        )
        probe["urls"] += [url for url in urls if url not in probe["urls"] and "*" not in url]
        if probe["urls"]:
            probes[f"{kind}-{service}"] = probe

    for host in hosts:
        variables = hostvars[host]
        for service, known in variables["__service_names"].items():
            names = [url_host(name) for name in known]
            entry = variables["__services"][service]
            path = entry.get("health_path") or ""
            seen = path and not is_private(path, entry)
            module, path = ("site", path) if seen else ("reachable", "/")
            redirecting = entry.get("redirect_names") or []
            add("site", service, module, [f"https://{name}{root_path(entry)}{path}" for name in names])
            add("redirect", service, "redirect", [f"http://{name}" for name in [*names, *redirecting]])
            add("other-names", service, "reachable", [f"https://{name}/" for name in redirecting])
    return probes


def service_states(
    services: Mapping[str, dict[str, Any]],
    host: str,
    app_hosts: Iterable[str],
    jobs: Mapping[str, Any],
    *,
    database: bool,
) -> list[dict[str, Any]]:
    """Return the services that status.yml shows of a host: name, runs, database, units.

    jobs: Those of the included service, those of all services if the environment has any, or none.
    database: Whether the host has the databases.
    """
    app_hosts, found = list(app_hosts), []
    for name, entry in services.items():
        hosts = service_hosts(entry, app_hosts)
        has_database = database and bool(entry.get("database"))
        if host not in hosts:
            if has_database:
                found.append({"name": name, "runs": False, "database": True, "units": []})
            continue
        own = jobs["all"] if jobs["all"] is not None else entry.get("jobs") or {}
        units = [f"{name}.socket", f"{name}@*.service"]
        for job in merge_entries({} if "source" in entry else jobs["included"], own):
            if "schedule" not in job:
                units.append(f"{name}-worker-{job['name']}@*.service")
            elif database or host == hosts[0]:
                units.append(f"{name}-job-{job['name']}.timer")
        found.append({"name": name, "runs": True, "database": has_database, "units": units})
    return found


def is_private(path: str, entry: Mapping[str, Any]) -> bool:
    """Return whether an edge refuses a service's path."""
    refused = [*(entry.get("private_paths") or []), entry["metrics_path"]]
    return any(f"{path}/".startswith(f"{known.rstrip('/')}/") for known in refused if known)


def _target(host: str, variables: Mapping[str, Any], exporter: str) -> Target:
    scheme = "https" if boolean(variables["exporter_tls"]) else "http"
    return {"address": str(variables["__scrape_addresses"][exporter]), "host": host, "scheme": scheme}


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        functions = (scrape_targets, service_targets, redis_targets, service_probes, service_states)
        return {function.__name__: function for function in functions}
