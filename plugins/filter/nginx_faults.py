"""Judge the sites of an edge before a web server gets them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.fastmetal.metal.plugins.filter.entries import entry_faults
from ansible_collections.fastmetal.metal.plugins.filter.nginx_sites import layered
from ansible_collections.fastmetal.metal.plugins.plugin_utils.nginx_zones import method_names

DOCUMENTATION = r"""
name: nginx_site_faults
short_description: Find sites that nginx would refuse or serve wrongly
description:
  - Returns a sentence for each fault of the sites that C(nginx_sites) returns.
author: Fastmetal
positional: consoles
options:
  _input: {description: "The sites.", type: list, elements: dict, required: true}
  consoles: {description: "Paths of operators' tools.", type: list, elements: str, required: true}
"""

EXAMPLES = r"""
__nginx_site_faults: "{{ __nginx_sites | fastmetal.metal.nginx_site_faults(['/grafana/']) }}"
"""

RETURN = r"""
_value: {description: "The sentences.", type: list, elements: str}
"""

PORT = r"(?:[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
HOST_PORT = rf"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):{PORT}"
BELOW_ROOT = r"/[^\s;{}]+"
FOLDER = r"/(?:[^\s;{}]+/)?"
# Where the sandbox of nginx sees nothing.
DIRECTORY = r"/(?!home/|root(?:/|$)|run/user/)(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*"
ORIGIN = r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9.\[\]:-]+"
HEADER = r"[A-Za-z][A-Za-z0-9-]*"
# Fields of the entries; "!" marks a required one.
FIELDS: dict[str, dict[str, str]] = {
    "rate_limits": {
        "path": "str!",
        "rate": "str!",
        "burst": "int!",
        "methods": "list",
        "key_rate": "str",
        "key_burst": "int",
    },
    "cached_paths": {"seconds": "int!"},
    "stream_paths": {"idle_seconds": "int!"},
}


def nginx_entry_faults(
    sites: Mapping[str, Any], variables: Mapping[str, Any], base: Mapping[str, Any]
) -> list[str]:
    """Return a sentence for each unknown, missing or mistyped field of rate limits, cached and stream paths.

    variables: What holds for all sites, by the variable's name without nginx_. base: Entries of the defaults.
    """
    found = []
    for key, fields in FIELDS.items():
        known = base if key == "rate_limits" else {}
        found += (own := entry_faults(variables[key], f"nginx_{key}", known, fields))
        inherited = known if own else layered(known, variables[key])
        for name, site in sites.items():
            found += entry_faults(site.get(key) or {}, f"services.{name}.{key}", inherited, fields)
    # The paths of these classes are the site's auth_paths and bulk_paths.
    return [fault for fault in found if not re.search(r"[.](?:auth|bulk)[.]path is missing", fault)]


def nginx_site_faults(sites: Iterable[Mapping[str, Any]], consoles: Iterable[str]) -> list[str]:
    """Return a sentence for each fault of the sites."""
    sites, consoles = list(sites), list(consoles)
    found = [f"services.{site['name']}: {fault}." for site in sites for fault in faults(site, consoles)]
    return found + list(shared_faults(sites))


def wrong(values: Iterable[Any], pattern: str) -> str:
    """Return the values that do not match, for a sentence."""
    return ", ".join(str(value) for value in dict.fromkeys(values) if not re.fullmatch(pattern, str(value)))


def faults(site: Mapping[str, Any], consoles: list[str]) -> Iterator[str]:
    """Yield the faults of one site, each without the site's name and the last full stop."""
    cases = [
        (
            [*site["names"], *site["redirect_names"]],
            r"[A-Za-z0-9*._:\[\]-]+",
            "write names and redirect_names as bare host names or addresses, without scheme, port or path",
        ),
        ([site["path"]], FOLDER, "write path as / or with a slash at both ends, such as /shop/"),
        (
            [site["root_path"]],
            r"|/[^\s;{}?#]*[^\s;{}?#/]",
            "write root_path as a path without a slash at its end, or empty",
        ),
        (site["upstreams"], rf"unix:/[^\s;]+|{HOST_PORT}", "write each upstream as unix:/path or host:port"),
        ([site["socket"]], r"|/[^\s;]+", "give socket as an absolute path"),
        (
            [bucket["rate"] for zone in site["zones"] for bucket in zone["buckets"]],
            r"[1-9][0-9]*r/[sm]",
            "write each rate of rate_limits as 10r/s or 30r/m",
        ),
        (
            [method for zone in site["zones"] for method in zone["methods"]],
            r"[A-Z]+",
            "write each of methods as in a request, such as POST",
        ),
        (
            [site["connections_per_client"]],
            r"[1-9][0-9]*",
            "give connections_per_client as 1 or more",
        ),
        (
            [bucket["burst"] for zone in site["zones"] for bucket in zone["buckets"]],
            r"[1-9][0-9]*",
            "give each burst of rate_limits as 1 or more",
        ),
        (
            [zone["path"] for zone in site["zones"]],
            rf"/|{BELOW_ROOT}",
            "start each path of rate_limits, auth_paths and bulk_paths with a slash",
        ),
        (
            [zone["name"] for zone in site["zones"]],
            r"[a-z][a-z0-9_]*",
            "name the zones of rate_limits in lower case letters",
        ),
        (
            [*site["private_paths"], *site["quiet_paths"]],
            BELOW_ROOT,
            "start each path of private_paths and quiet_paths with a slash, and name more than the root",
        ),
        (
            [entry["path"] for entry in [*site["cached_paths"], *site["stream_paths"]]],
            BELOW_ROOT,
            "start each path of cached_paths and stream_paths with a slash, and name more than the root",
        ),
        ([entry["path"] for entry in site["files"]], FOLDER, "write each serve_at with a slash at both ends"),
        (
            [entry["root"] + entry["now"] for entry in site["files"]],
            DIRECTORY,
            "give directories of files as paths of letters, digits, dots and dashes without a slash at the"
            " end, outside of /home and /root, which the sandbox of nginx hides",
        ),
        (
            site["cors_origins"],
            ORIGIN,
            "write each of cors_origins as an origin without a path, such as https://shop.example, or *",
        ),
        ([site["body_limit"]], r"[1-9][0-9]*[kmg]?", "write body_limit as a size such as 512k or 1m"),
        (site["headers"], HEADER, "write the keys of headers as header names"),
    ]
    for values, pattern, remedy in cases:
        if found := wrong(values, pattern):
            yield f"{remedy}, not {found}"
    for key, field, highest in (("cached_paths", "seconds", 3600), ("stream_paths", "idle_seconds", 86400)):
        if any(not 1 <= int(entry[field]) <= highest for entry in site[key]):
            yield f"give each of {key} 1 to {highest} {field}"
    if not site["names"]:
        yield "names is empty: list the host names that the site answers to"
    if site["redirect_names"] and "*" in site["names"][0]:
        yield f"redirect_names lead to the first of names, {site['names'][0]}: put a whole name first"
    if 0 < sum(server.startswith("unix:") for server in site["upstreams"]) < len(site["upstreams"]):
        yield "use only sockets or only host:port as upstreams, not both"
    yield from clashes(site, consoles)


def clashes(site: Mapping[str, Any], consoles: list[str]) -> Iterator[str]:
    """Yield the faults of paths that nginx could not tell apart."""
    limited = Counter((zone["path"], tuple(method_names(zone))) for zone in site["zones"])
    if twice := [path for (path, _), count in limited.items() if count > 1]:
        yield f"rate_limits has two zones for {', '.join(twice)}: merge them, or set one to null"
    names = Counter(header.lower() for header in site["headers"])
    if twice := [header for header in site["headers"] if names[header.lower()] > 1]:
        yield f"headers has {', '.join(twice)} in two spellings: write it once"
    exclusive = Counter([*consoles, *site["private_paths"], *(entry["path"] for entry in site["files"])])
    if twice := [path for path, count in exclusive.items() if count > 1]:
        yield (
            f"{', '.join(twice)} is in two of private_paths, static, state and nginx_consoles:"
            " name each path once"
        )
    if site["path"] in consoles:
        yield f"path {site['path']} is also that of an operators' tool in nginx_consoles: give it another"
    shared = [location["path"] for location in site["locations"] if location["match"] == "^~"]
    if both := [path for path in exclusive if path in shared]:
        yield (
            f"{', '.join(both)} is in private_paths or nginx_consoles, or is a directory of files,"
            " and also in rate_limits, cached_paths, quiet_paths or stream_paths: remove it from one of them"
        )
    streams = {entry["path"] for entry in site["stream_paths"]}
    if both := [entry["path"] for entry in site["cached_paths"] if entry["path"] in streams]:
        yield f"{', '.join(both)} is in stream_paths and cached_paths: a cache would hold the stream back"


def shared_faults(sites: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the faults of sites that have a name in common."""
    owners: dict[tuple[str, str], str] = {}
    for site in sites:
        for name in site["names"]:
            other = owners.setdefault((name, site["path"]), site["name"])
            if other != site["name"]:
                yield (
                    f"services.{other} and services.{site['name']} both serve {name}{site['path']}:"
                    " give one of them another name or path."
                )
    served = {name for site in sites for name in site["names"]}
    targets: dict[str, str] = {}
    for site in sites:
        for name in site["redirect_names"]:
            if name in served:
                yield (
                    f"services.{site['name']}.redirect_names has {name}, which is also served:"
                    " remove it from one of them."
                )
            target = targets.setdefault(name, site["names"][0]) if site["names"] else ""
            if site["names"] and target != site["names"][0]:
                yield (
                    f"{name} cannot be redirected to both {target} and {site['names'][0]}:"
                    " remove it from one redirect_names."
                )


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {function.__name__: function for function in (nginx_entry_faults, nginx_site_faults)}
