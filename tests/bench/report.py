"""Medians, ratios, goals, tables and a plot of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

from tests.bench.measure import CONNECTIONS, COUNTED, Load, Sample

ROUTES = ("no_io", "by_key", "cached", "list", "insert")
# Minimum ratio of the service's requests per second to the reference's.
GOALS = {"no_io": 4, "by_key": 4, "cached": 4, "list": 4, "insert": 5}
OF_BARE = 0.4
EDGE_CACHE_GOAL = 8
MEMORY_GOAL = 0.5
COLORS = {"1": "#9db4c0", "2": "#253237"}

Found = Mapping[Load, list[Sample]]


def figures(samples: list[Sample]) -> dict[str, Any]:
    """Return the medians of one load's samples."""
    return {
        "rps": round(median(sample.rps for sample in samples), 1),
        "cpu_us": round(median(sum(sample.cpu_us[name] for name in COUNTED) for sample in samples), 1),
        "p50_ms": round(median(sample.p50_ms for sample in samples), 2),
        "p99_ms": round(median(sample.p99_ms for sample in samples), 2),
        "errors": sum(sample.errors for sample in samples),
        "cpu_us_of": {
            name: round(median(sample.cpu_us[name] for sample in samples), 1) for name in samples[0].cpu_us
        },
        "rps_of_rounds": [round(sample.rps, 1) for sample in samples],
    }


def by_route(found: Found, who: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return results by route and by name of the service; `who` has the names, others are left out."""
    result: dict[str, dict[str, Any]] = {}
    for load, samples in found.items():
        if load.service in who:
            result.setdefault(load.route, {})[who[load.service]] = figures(samples)
    return result


def goals(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the goals with their measured values, and whether each is met."""

    def ratio(ours: Mapping[str, Any], other: Mapping[str, Any], figure: str) -> float:
        return round(float(ours[figure]) / float(other[figure]), 2)

    found = []
    for route, goal in GOALS.items():
        ours, reference, bare = (result[route][who] for who in ("ours", "reference", "bare"))
        found.append(
            _at_least(f"{route}: requests/s of the reference's", ratio(ours, reference, "rps"), goal)
        )
        if route == "no_io":
            found.append(_at_least("no_io: requests/s of the bare's", ratio(ours, bare, "rps"), OF_BARE))
        found.append(_at_most(f"{route}: p99 of the reference's", ratio(ours, reference, "p99_ms"), 1))
        found.append(_at_most(f"{route}: failed", ours["errors"], 0))
    for route, pair in result["edge_cache"].items():
        times = ratio(pair["ours"], pair["reference"], "rps")
        found.append(_at_least(f"{route}, edge cache: requests/s of the reference's", times, EDGE_CACHE_GOAL))
    memory = result["memory"]
    times = ratio(memory["ours"], memory["reference"], "pss_mb")
    found.append(_at_most("memory of the reference's", times, MEMORY_GOAL))
    return found


def _at_least(name: str, value: float, goal: float) -> dict[str, Any]:
    return {"name": name, "value": value, "goal": f"≥ {goal:g}", "met": value >= goal}


def _at_most(name: str, value: float, goal: float) -> dict[str, Any]:
    return {"name": name, "value": value, "goal": f"≤ {goal:g}", "met": value <= goal}


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return an aligned Markdown table: the first column left, the others right."""
    cells = [head, *rows]
    first, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
    rule = ["-" * first, *("-" * (width - 1) + ":" for width in widths)]
    lines = (
        [row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))]
        for row in (head, rule, *cells[1:])
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Return a table for each part that was measured."""
    parts = {"routes": f"{_about(result)}\n{_routes(result)}"} if "no_io" in result else {}
    return parts | {name: part(result[name]) for name, part in TABLES.items() if name in result}


def _about(result: Mapping[str, Any]) -> str:
    rounds = f"{result['rounds']} rounds of {result['seconds']} s"
    others = (f"{result['others'][name]:.0%}" for name in ("median", "most"))
    return (
        f"{rounds}, {CONNECTIONS} connections, {result['rows']:,} rows."
        f" Others used {' to '.join(others)} of the machine (median, most).\n"
    )


def _routes(result: Mapping[str, Any]) -> str:
    rows = []
    for route in ROUTES:
        for who, one in result[route].items():
            if who == "bare" and route != "no_io":
                continue  # it has a single route
            times = one["rps"] / result[route]["reference"]["rps"]
            parts = [f"{value:.0f}" for value in one["cpu_us_of"].values()]
            rows.append([route, who, f"{one['rps']:.0f}", f"{times:.2f}", f"{one['cpu_us']:.0f}", *parts])
            rows[-1] += [f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}", str(one["errors"])]
    units = result["no_io"]["ours"]["cpu_us_of"]
    return table(["route", "who", "req/s", "ratio", "CPU µs", *units, "p50 ms", "p99 ms", "failed"], rows)


def _limits(limits: Mapping[str, float]) -> str:
    return table(["limit", "a second"], ([name, f"{value:.0f}"] for name, value in limits.items()))


def _edge_cache(routes: Mapping[str, Any]) -> str:
    rows = []
    for route, pair in routes.items():
        ours, reference = pair["ours"]["rps"], pair["reference"]["rps"]
        p99 = f"{pair['ours']['p99_ms']:.1f}"
        rows.append([route, f"{ours:.0f}", f"{reference:.0f}", f"{ours / reference:.1f}", p99])
    return table(["edge cache", "ours req/s", "reference req/s", "ratio", "ours p99 ms"], rows)


def _growth(growth: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for one in growth:
        first, second = one["rps"]["1"], one["rps"]["2"]
        name = f"{one['route']}, {one['rows']:,} rows"
        rows.append([name, f"{first:.0f}", f"{second:.0f}", f"{second / first:.2f}"])
    return table(["req/s", "1 worker", "2 workers", "ratio"], rows)


def _choices(choices: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, one in choices.items():
        whole = choices[name.split(",")[0]]
        cells = (f"{one['rps']:.0f}", f"{one['rps'] / whole['rps']:.2f}", f"{one['cpu_us']:.0f}")
        rows.append([name, *cells, f"{one['p99_ms']:.1f}", str(one["errors"])])
    return table(["choice, by key", "req/s", "of the whole", "CPU µs", "p99 ms", "failed"], rows)


def _memory(memory: Mapping[str, Any]) -> str:
    rows = ([who, str(one["processes"]), f"{one['pss_mb']:.0f}"] for who, one in memory.items())
    return table(["memory", "processes", "PSS MB"], rows)


def _goals(goals: Iterable[Mapping[str, Any]]) -> str:
    rows = (
        [one["name"], f"{one['value']:g}", one["goal"], "met" if one["met"] else "MISSED"] for one in goals
    )
    return table(["goal", "measured", "aim", ""], rows)


TABLES: dict[str, Callable[[Any], str]] = {
    "limits": _limits,
    "edge_cache": _edge_cache,
    "growth": _growth,
    "choices": _choices,
    "memory": _memory,
    "goals": _goals,
}


def plot(growth: Iterable[Mapping[str, Any]]) -> str:
    """Return an SVG with a panel per route, and two bars (1 and 2 workers) per number of rows."""
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for one in growth:
        panels.setdefault(one["route"], []).append(one)
    most = max(rps for ones in panels.values() for one in ones for rps in one["rps"].values())
    shapes = []
    for panel, (route, ones) in enumerate(panels.items()):
        shapes.append(_label(20 + panel * 230, 20, route, "title"))
        for group, one in enumerate(ones):
            x = 20 + panel * 230 + group * 70
            shapes.append(_label(x + 28, 205, _short(one["rows"]), "value"))
            for position, (workers, rps) in enumerate(sorted(one["rps"].items())):
                left, tall = x + position * 29, 150 * rps / most
                size = f'x="{left}" y="{190 - tall:.1f}" width="27" height="{tall:.1f}"'
                shapes.append(f'<rect {size} fill="{COLORS[workers]}"/>')
                shapes.append(_label(left + 13.5, 186 - tall, f"{rps / 1000:.1f}k", "value"))
    shapes.append(
        _label(20, 228, "requests/s by rows in the table; light: 1 worker, dark: 2 workers", "title")
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {20 + 230 * len(panels)} 240">'
        "<style>text{font:9px sans-serif}.title{font-size:12px}.value{text-anchor:middle}</style>"
        f'<rect width="100%" height="100%" fill="white"/>{"".join(shapes)}</svg>\n'
    )


def _label(x: float, y: float, words: str, style: str) -> str:
    return f'<text x="{x:g}" y="{y:.1f}" class="{style}">{words}</text>'


def _short(rows: int) -> str:
    return f"{rows // 1_000_000}M" if rows >= 1_000_000 else f"{rows // 1_000}k"
