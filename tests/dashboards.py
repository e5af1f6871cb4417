"""The queries that Grafana sends for the dashboards: variables, PromQL and intervals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "roles/grafana/files/dashboards"
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
# Grafana rounds the step of a query to these values in seconds.
STEPS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600)
# Width of a full-width panel in pixels; Grafana requests one point per pixel.
SCREEN = 1500


def load() -> dict[str, dict[str, Any]]:
    """Return the dashboards by file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FILES.glob("*.json"))}


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the panels without the rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@dataclass
class Query:
    """A query as Grafana sends it to Prometheus, over `seconds` with a point every `step` seconds."""

    where: str
    expr: str
    legend: str
    instant: bool
    seconds: int
    step: int


def duration(text: str) -> int:
    """Return the seconds of "now-6h"."""
    found = re.fullmatch(r"now-(\d+)([smhd])", text)
    if not found:
        raise ValueError(f"{text} is not a time range that the tests support")
    return int(found[1]) * int(UNITS[found[2]])


def queries(board: Mapping[str, Any], scrape_seconds: int) -> Iterator[Query]:
    """Yield all queries of a dashboard over its own time range, with "All" selected in each variable."""
    seconds = duration(board["time"]["from"])
    chosen = {item["name"]: item["allValue"] for item in board["templating"].get("list", [])}

    def make_query(where: str, target: Mapping[str, Any], width: int) -> Query:
        exact = max(seconds / (SCREEN * width / 24), scrape_seconds)
        step = min(STEPS, key=lambda known: abs(known - exact))
        words = {
            **chosen,
            "__interval": f"{step}s",
            "__rate_interval": f"{max(step + scrape_seconds, 4 * scrape_seconds)}s",
            "__range": f"{seconds}s",
        }
        expr = re.sub(r"\$(\w+)", lambda found: words[found[1]], target["expr"])
        return Query(where, expr, target.get("legendFormat", ""), target.get("instant", False), seconds, step)

    for panel in panels(board):
        for target in panel["targets"]:
            where = f"{board['title']}: {panel['title']} {target['refId']}"
            yield make_query(where, target, panel["gridPos"]["w"])
    for annotation in board["annotations"].get("list", []):
        yield make_query(f"{board['title']}: event {annotation['name']}", annotation, 24)


def variables(board: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return {variable: (selector, label)} of the dashboard variables."""
    found = {}
    for item in board["templating"].get("list", []):
        parts = re.fullmatch(r"label_values\((.+), (\w+)\)", item["query"])
        if not parts:
            raise ValueError(f"{item['query']} is not a variable that the tests support")
        found[item["name"]] = (parts[1], parts[2])
    return found


def metrics(expr: str) -> set[str]:
    """Return the metrics in a PromQL expression, which must parse."""
    names: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            names.add(str(node.name))

    promql_parser.walk(promql_parser.parse(expr), visit)
    return names
