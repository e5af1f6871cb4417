"""Work out the sites and servers of an edge from the services, and judge them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.fastmetal.metal.plugins.filter.nginx import nginx_literal, nginx_locations
from ansible_collections.fastmetal.metal.plugins.filter.services import service_hosts
from ansible_collections.fastmetal.metal.plugins.filter.wiring import endpoints, merge_entries, url_host
from ansible_collections.fastmetal.metal.plugins.plugin_utils.nginx_zones import zones

DOCUMENTATION = r"""
name: nginx_sites
short_description: Work out everything that nginx needs to know about each service
description:
  - Returns one site for each entry of C(nginx_sites), with what holds for all sites as its defaults.
  - Paths of an entry are those of the application. The result has the paths that clients ask for.
author: Fastmetal
positional: defaults
options:
  _input: {description: "Sites by the name of their service.", type: dict, required: true}
  defaults: {description: "What holds for all sites, by the fields of a site.", type: dict, required: true}
"""

EXAMPLES = r"""
__nginx_sites: "{{ nginx_sites | fastmetal.metal.nginx_sites(__nginx_site_defaults) }}"
"""

RETURN = r"""
_value: {description: "The sites.", type: list, elements: dict}
"""

Site = dict[str, Any]
# Keys of a service's entry that are fields of its site.
KEYS = (
    *("redirect_names", "path", "root_path", "page_policy", "headers", "health_path", "metrics_path"),
    *("private_paths", "quiet_paths", "auth_paths", "bulk_paths", "stream_paths", "cached_paths"),
    *("maintenance_paths", "rate_limits", "rate_limit_dry_run", "connections_per_client", "body_limit"),
    *("locations", "cors_origins", "cors_credentials", "static", "state"),
)
# Variables of nginx have no dash in their names.
DASH = str.maketrans("-", "_")


def service_names(services: Mapping[str, Site], first: list[str]) -> dict[str, list[str]]:
    """Return the host names of each service.

    first: Those of the first service if it names none. A service with a path and without names shares them.
    """
    names: dict[str, list[str]] = {}
    for name, entry in services.items():
        shared = first if not names else next(iter(names.values())) if entry["path"] != "/" else []
        names[name] = list(entry.get("names") or shared)
    return names


def service_urls(services: Mapping[str, Site], names: Mapping[str, list[str]]) -> dict[str, str]:
    """Return the URL of each service without the last slash; of several names the first whole one."""
    urls = {}
    for name, entry in services.items():
        whole = next((host for host in names[name] if "*" not in host), "")
        urls[name] = f"https://{url_host(whole)}{root_path(entry)}"
    return urls


def root_path(entry: Mapping[str, Any]) -> str:
    """Return what clients write in front of the paths of an application."""
    given = entry.get("root_path")
    return str(entry.get("path") or "/").rstrip("/") if given is None else str(given)


def service_sites(
    services: Mapping[str, Site],
    names: Mapping[str, list[str]],
    here: Iterable[str],
    app_hosts: list[str],
    hostvars: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Site]:
    """Return the sites of the services on a host, as `nginx_sites` takes them.

    names: The host names of each service. here: The services that run on this host.
    settings: Those of all services, if the environment has them.
    """
    here, sites = list(here), {}
    for name, entry in services.items():
        socket = f"/run/{name}/{name}.sock" if name in here else ""
        site = {key: entry[key] for key in KEYS if key in entry}
        found = settings or entry["settings"]
        if "source" not in entry:
            # Where clients of the included service sign in.
            site.setdefault("auth_paths", [f"{found.get('API_PREFIX', '/api/v1')}/auth/"])
        # What the service accepts holds for nginx' own answers, such as 429 and 503, too.
        if found.get("CORS_ORIGINS"):
            site.setdefault("cors_origins", origins(found["CORS_ORIGINS"]))
        if "CORS_ALLOW_CREDENTIALS" in found:
            site.setdefault("cors_credentials", boolean(found["CORS_ALLOW_CREDENTIALS"]))
        hosts = service_hosts(entry, app_hosts)
        upstreams = [f"unix:{socket}"] if socket else endpoints(hosts, hostvars, "app")
        sites[name] = site | {"names": names[name], "upstreams": upstreams, "socket": socket}
    return sites


def origins(given: str | list[str]) -> list[str]:
    """Return the origins of a setting: a list, JSON, or text with commas."""
    if not isinstance(given, str):
        return list(given)
    if given.startswith("["):
        return list(json.loads(given))
    return [origin.strip() for origin in given.split(",") if origin.strip()]


def layered(*layers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Merge dictionaries of entries, field by field; null in a layer removes an entry."""
    entries: dict[str, dict[str, Any]] = {}
    for layer in layers:
        entries = {entry.pop("name"): entry for entry in merge_entries(entries, layer)}
    return entries


def files(name: str, site: Site, defaults: Site, below: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return the directories of a site.

    path: Where clients find them. now: The directory below `root`, empty for `root` itself.
    kept: Directories of other releases. media: Whether the files may be users'.
    immutable: The directory below `now` whose files never change, empty for all, or none.
    """
    found = []
    for entry in site.get("static") or []:
        inside = str(entry["path"]).strip("/").removeprefix("./")
        code = f"/code/{inside or '.'}"
        places = [f"/{link}{code}" for link in ("current", "next", "previous")]
        never = entry.get("immutable")
        immutable = None if never is None else f"{never.strip('/')}/".removeprefix("./").removeprefix("/")
        found.append((entry["serve_at"], f"/srv/{name}", places[0], places[1:], False, immutable))
    found += [
        (entry["serve_at"], f"/var/lib/{name}", f"/{entry['name']}", [], True, None)
        for entry in site.get("state") or []
        if isinstance(entry, Mapping) and entry.get("serve_at")
    ]
    if not site.get("socket"):
        found = []  # The app hosts serve them.
    taken = {entry[0] for entry in found}
    for path, directory, media in (
        ("/static/", defaults["static_directory"], False),
        ("/media/", defaults["media_directory"], True),
    ):
        if directory and path not in taken:
            found.append((path, directory, "", [], media, None))
    keys = ("path", "root", "now", "kept", "media", "immutable")
    return [dict(zip(keys, (below(path), *more), strict=True)) for path, *more in found]


def nginx_sites(sites: Mapping[str, Site], defaults: Site) -> list[Site]:
    """Return the sites in their order, with their defaults and with paths as clients write them."""
    return [
        resolve(name, {key: value for key, value in site.items() if value is not None}, defaults)
        for name, site in sites.items()
    ]


def resolve(name: str, site: Site, defaults: Site) -> Site:
    """Return a site with everything that the templates need."""
    path, prefix = site.get("path") or "/", root_path(site)

    def below(path: str) -> str:
        return f"{prefix}{path}"

    def inside(paths: Iterable[str]) -> list[str]:
        """What holds for all sites may lie outside of this one."""
        return [found for found in map(below, paths) if found.startswith(path)]

    def entries(key: str) -> list[dict[str, Any]]:
        merged = layered(defaults[key], site.get(key) or {})
        return [{"path": below(path), **fields} for path, fields in merged.items() if inside([path])]

    classes = layered(defaults["base_rate_limits"], defaults["rate_limits"], site.get("rate_limits") or {})
    limits = zones(name, site, classes, defaults["key_headers"])
    everywhere = [zone for zone in limits if zone["path"] == "/"]
    routes = [
        {**zone, "path": below(zone["path"])}
        for zone in limits
        if inside([zone["path"]]) and zone["path"] != "/"
    ]
    quiet = inside([*defaults["quiet_paths"], *(site.get("quiet_paths") or [])])
    health = inside([site["health_path"]] if site.get("health_path", "/") != "/" else [])
    metrics = [site["metrics_path"]] if site.get("metrics_path") else []
    cached, streams = entries("cached_paths"), entries("stream_paths")
    headers = {**defaults["page_policies"][site.get("page_policy", "api")], **defaults["headers"]}
    headers |= site.get("headers") or {}
    upstreams = site.get("upstreams") or []
    return {
        "name": name,
        "variable": name.translate(DASH),
        "names": [url_host(name) for name in site.get("names") or defaults["server_names"]],
        "redirect_names": site.get("redirect_names") or [],
        "path": path,
        "root_path": prefix,
        "upstreams": upstreams,
        "tls": any(not server.startswith("unix:") for server in upstreams),
        "tls_name": f"{name}.internal",
        "socket": site.get("socket", ""),
        "everywhere": everywhere,
        "all_methods": next((zone for zone in everywhere if not zone["methods"]), None),
        "zones": limits,
        "buckets": {bucket["zone"]: bucket for zone in everywhere + routes for bucket in zone["buckets"]},
        "rate_limit_dry_run": site.get("rate_limit_dry_run", defaults["rate_limit_dry_run"]),
        "connections_per_client": site.get("connections_per_client", defaults["connections_per_client"]),
        "locations": nginx_locations(
            [*everywhere, *routes],
            cached,
            quiet,
            streams,
            [path for path in health if not path.startswith(tuple(quiet))],
        ),
        "own_locations": [
            own_location(entry, prefix) for entry in [*defaults["locations"], *(site.get("locations") or [])]
        ],
        "private_paths": list(
            dict.fromkeys(inside([*defaults["private_paths"], *metrics, *(site.get("private_paths") or [])]))
        ),
        "quiet_paths": quiet,
        "cached_paths": cached,
        "stream_paths": streams,
        "maintenance_paths": inside(site.get("maintenance_paths") or []),
        "files": files(name, site, defaults, below),
        "body_limit": site.get("body_limit", defaults["body_limit"]),
        "headers": {header: value for header, value in headers.items() if value is not None},
        "cors_origins": site.get("cors_origins") or defaults["cors_origins"],
        "cors_credentials": site.get("cors_credentials", defaults["cors_credentials"]),
    }


def own_location(entry: Mapping[str, str], root_path: str) -> dict[str, str]:
    """Return a location of the operator below the site's path; expressions and names stay as they are."""
    modifier, _, path = entry["path"].rpartition(" ")
    plain = path.startswith("/") and not modifier.startswith("~")
    return {**entry, "path": f"{modifier} {root_path}{path}".strip() if plain else entry["path"]}


def nginx_servers(
    sites: Iterable[Site], consoles: list[Any], console_names: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the servers of an edge: names that have the same sites and consoles, the longest path first.

    consoles: The operators' tools without a name of their own. console_names: Where they are.
    """
    found: dict[str, list[Site]] = {name: [] for site in sites for name in site["names"]}
    shown = [url_host(name) for name in console_names] if consoles else []
    for site in sites:
        for name in site["names"]:
            found[name].append(site)
    servers: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name in dict.fromkeys([*found, *shown]):
        here = sorted(found.get(name, []), key=lambda site: len(site["path"]), reverse=True)
        key = (*(site["name"] for site in here), name in shown)
        server = servers.setdefault(
            key, {"names": [], "sites": here, "consoles": consoles if name in shown else []}
        )
        server["names"].append(name)
    for server in servers.values():
        server["root"] = any(site["path"] == "/" for site in server["sites"])
        server["literal"] = nginx_literal(server["names"][0])
    return list(servers.values())


def nginx_redirects(sites: Iterable[Site]) -> dict[str, list[str]]:
    """Return the names that are redirected, by the name and path that they are redirected to."""
    redirects: dict[str, list[str]] = {}
    for site in sites:
        for name in site["redirect_names"]:
            names = redirects.setdefault(f"{site['names'][0]}{site['path'].rstrip('/')}", [])
            if name not in names:
                names.append(name)
    return redirects


FILTERS = (nginx_sites, nginx_servers, nginx_redirects, service_names, service_sites, service_urls)


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {function.__name__: function for function in FILTERS}
