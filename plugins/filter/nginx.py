"""Work out the locations of an edge from its limits, caches and quiet paths."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from ansible_collections.fastmetal.metal.plugins.plugin_utils.nginx_zones import limits_of

DOCUMENTATION = r"""
name: nginx_locations
short_description: Work out which rate limit and cache apply to each path
description:
  - Returns one entry for each path of the limits, caches and quiet paths, which becomes one nginx location.
  - Nginx uses only the longest matching location. Each entry therefore includes what shorter paths set, the
    longest matching limits and cache, and whether its requests are logged.
  - The path C(/) has no entry, and a path that only its limits cover has none of its own, because locations
    inherit them.
  - A path that ends with a slash has a second entry without it, which nginx would redirect otherwise.
author: Fastmetal
positional: cached_paths, quiet_paths, stream_paths, exact_paths
options:
  _input: {description: "Rate limits, with path and methods.", type: list, elements: dict, required: true}
  cached_paths: {description: "Caches, each with path.", type: list, elements: dict, required: true}
  quiet_paths: {description: Paths that are not logged., type: list, elements: str, required: true}
  stream_paths: {description: "Streams, each with path.", type: list, elements: dict, default: []}
  exact_paths: {description: "Paths that are not logged themselves.", type: list, elements: str, default: []}
"""

EXAMPLES = r"""
locations: >-
  {{ nginx_rate_limits | fastmetal.metal.nginx_locations([], nginx_quiet_paths) }}
"""

RETURN = r"""
_value:
  description: >-
    Locations, each with match (^~ or =), path, limits (entries of the input), cache and stream (an entry, or
    none) and quiet (bool).
  type: list
  elements: dict
"""


PLAIN = string.ascii_letters + string.digits + "/-_"


def longest_match(entries: Iterable[Mapping[str, Any]], path: str) -> Mapping[str, Any] | None:
    """Return the entry whose path is the longest prefix of a path."""
    matching = [entry for entry in entries if path.startswith(entry["path"])]
    return max(matching, key=lambda entry: len(entry["path"]), default=None)


def nginx_locations(
    rate_limits: Iterable[Mapping[str, Any]],
    cached_paths: Iterable[Mapping[str, Any]],
    quiet_paths: Iterable[str],
    stream_paths: Iterable[Mapping[str, Any]] = (),
    exact_paths: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return one location for each path, with everything that applies to it."""
    zones = list(rate_limits)
    limits = [zone for zone in zones if zone["path"] != "/"]
    caches, quiet, streams = list(cached_paths), list(quiet_paths), list(stream_paths)
    silent = set(exact_paths)
    # A dictionary for its order: a set would change the file from run to run.
    paths = dict.fromkeys([*(entry["path"] for entry in [*limits, *caches, *streams]), *quiet])
    folders = [path[:-1] for path in paths if path.endswith("/") and path[:-1] not in paths]
    exact = {path: path for path in exact_paths} | {path: f"{path}/" for path in folders}
    return [
        {
            "match": match,
            "path": path,
            "limits": limits_of(zones, as_folder) if longest_match(limits, as_folder) else [],
            "cache": longest_match(caches, as_folder),
            "stream": longest_match(streams, as_folder),
            "quiet": path in silent or any(as_folder.startswith(prefix) for prefix in quiet),
        }
        for match, path, as_folder in [
            *(("^~", path, path) for path in paths),
            *(("=", path, as_folder) for path, as_folder in exact.items()),
        ]
    ]


def nginx_literal(text: str) -> str:
    """Return a regular expression that matches a text, without characters that nginx' syntax knows."""
    return "".join(chr(b) if chr(b) in PLAIN else f"\\x{b:02x}" for b in text.encode())


def nginx_private_pattern(paths: Iterable[str], service: str) -> str:
    """Return an expression for "$service $uri" that matches paths, what is below them, and their disguises.

    A segment may end with parameters (";x"). An application may take a backslash for a slash, or ignore a
    character that names do not have. The expression has no quotes or backslashes but of \\xHH, so nginx
    reads it as it is within double quotes.
    """
    separator = r"(?:(?:;[^/\x5c]*)?[/\x5c])+"
    patterns = []
    for path in paths:
        segments = [unquote(segment) for segment in path.split("/") if segment]
        patterns.append("".join(separator + nginx_literal(segment) for segment in segments))
    return f"^{service} (?:{'|'.join(patterns)})(?![A-Za-z0-9_.~-])"


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "nginx_literal": nginx_literal,
            "nginx_locations": nginx_locations,
            "nginx_private_pattern": nginx_private_pattern,
        }
