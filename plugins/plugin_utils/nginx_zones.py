"""Work out the rate limit zones of nginx for each class of requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Zone = dict[str, Any]


def zones(
    name: str, site: Mapping[str, Any], classes: Mapping[str, Zone], key_headers: list[str]
) -> list[Zone]:
    """Return a rate limit for each path of a site's classes of requests.

    A class without a path covers the site's `CLASS_paths`. Each limit has its `buckets`: one counts by client
    network, and one for each header counts by the API key or token in it.
    """
    found = []
    for zone, fields in classes.items():
        for path in [fields["path"]] if "path" in fields else site.get(f"{zone}_paths") or []:
            entry = {"methods": [], **fields, "name": zone, "path": path}
            entry["buckets"] = list(buckets(name, entry, key_headers))
            entry["zone"] = entry["buckets"][0]["zone"]
            entry["seconds"] = max(period(bucket["rate"]) for bucket in entry["buckets"])
            found.append(entry)
    return found


def buckets(name: str, zone: Zone, key_headers: list[str]) -> Iterator[Zone]:
    """Yield what counts the requests of a zone: nginx' name, key, rate and burst.

    A reload fails if a zone of the same name gets another key, so the names of zones say their kind.
    """
    methods = "_".join(method_names(zone))
    kind = methods or ("site" if zone["path"] == "/" else "route")
    own = "" if kind == "site" else f"_{zone['name']}"
    network = {"site": "client_network", "route": "client_of_route"}.get(kind, f"client_of_{methods}")
    yield {
        "zone": f"{kind}_{name}{own}",
        "key": f"${network}",
        "rate": zone["rate"],
        "burst": zone["burst"],
    }
    for number in range(1, len(key_headers) + 1):
        yield {
            "zone": f"key{number}_{kind}_{name}{own}",
            "key": f"$key_{number}{'_of_' if methods else ''}{methods}",
            "rate": zone.get("key_rate") or zone["rate"],
            "burst": zone.get("key_burst") or zone["burst"],
        }


def method_names(zone: Mapping[str, Any]) -> list[str]:
    """Return a zone's methods in one order and spelling."""
    return sorted({str(method).lower() for method in zone["methods"]})


def period(rate: Any) -> int:
    """Return the seconds between two requests, at least 1."""
    found = re.fullmatch(r"([1-9][0-9]*)r/m", str(rate))
    return -(-60 // int(found[1])) if found else 1


def limits_of(found: Iterable[Mapping[str, Any]], path: str) -> list[Mapping[str, Any]]:
    """Return the limits of a path: the longest one for all methods, and for each set of methods."""
    longest: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for zone in found:
        methods = tuple(method_names(zone))
        known = longest.get(methods)
        if zone["path"] == "/" or path.startswith(zone["path"]):
            longest[methods] = max(filter(None, (known, zone)), key=lambda entry: len(entry["path"]))
    return list(longest.values())
