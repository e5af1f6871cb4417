"""Parsers, statistics and reports of `make bench`, without measurements."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.bench import report
from tests.bench.limits import parse_pgbench, parse_redis_benchmark
from tests.bench.measure import Load, Sample, parse_usage, parse_wrk
from tests.bench.publish import publish

FIGURES = '{"requests":120,"microseconds":1000000,"p50_us":900,"p99_us":4000,"refused":2,"broken":1}'
SERVED = {"api": "ours", "uncached": "ours", "reference": "reference", "bare": "bare"}


def sample(rps: float, **changes: Any) -> Sample:
    cpu = {"app": 1e6 / rps, "postgres": 10, "redis": 5, "nginx": 40, "journal": 30}
    values: dict[str, Any] = {"errors": 0, "cpu_us": cpu, "others": 0.0} | changes
    return Sample(rps=rps, p50_ms=1, p99_ms=1000 / rps, **values)


def make_result(ours: float = 5000, errors: int = 0) -> dict[str, Any]:
    """Return the results of a run with fixed values for all services but ours."""
    services = {"api": ours, "reference": 1000.0, "bare": 10_000.0}
    found = {
        Load(route, service, "/"): [sample(rps, errors=errors if service == "api" else 0)]
        for route in report.ROUTES
        for service, rps in services.items()
    }
    result: dict[str, Any] = dict(report.by_route(found, SERVED))
    edge_cache = {Load("list", "api", "/"): [sample(9000)], Load("list", "reference", "/"): [sample(1000)]}
    result["edge_cache"] = report.by_route(edge_cache, SERVED)
    result |= {"rounds": 1, "seconds": 8, "rows": 100_000, "others": {"median": 0.01, "most": 0.04}}
    result["choices"] = {name: report.figures([sample(900)]) for name in ("ours", "ours, 1 worker")}
    result["limits"] = {"nginx_return": 50_000.0}
    result["memory"] = {
        "ours": {"processes": 3, "pss_mb": 100},
        "reference": {"processes": 6, "pss_mb": 300},
    }
    result["growth"] = [
        {"route": "by key", "rows": rows, "rps": {"1": 2000.0, "2": 3500.0}} for rows in (1000, 5_000_000)
    ]
    result["goals"] = report.goals(result)
    return result


def test_wrk_results_are_parsed_from_its_output() -> None:
    output = f"Running 1s test @ https://host\n  Non-2xx or 3xx responses: 2\n\n{FIGURES}\n"
    assert parse_wrk(output)["refused"] == 2
    with pytest.raises(RuntimeError, match="unable to connect"):
        parse_wrk("unable to connect to host:https Connection refused")


def test_output_without_results_is_an_error() -> None:
    assert parse_usage("usage_usec 25268499\nuser_usec 19519940\n") == 25268499
    words = "latency average = 0.4 ms\ntps = 41234.567 (without initial connection time)\n"
    assert parse_pgbench(words) == 41234.567
    assert (
        parse_redis_benchmark("GET api: rps=1.0\rGET api: 73000.00 requests per second, p50=0.4 msec")
        == 73000
    )
    for parse in (parse_pgbench, parse_redis_benchmark):
        with pytest.raises(RuntimeError, match="FATAL: no"):
            parse("FATAL: no")


def test_figures_are_medians_of_rounds_and_sums_of_errors() -> None:
    samples = [sample(100, errors=1), sample(300, errors=2), sample(200)]
    figures = report.figures(samples)
    assert (figures["rps"], figures["errors"], figures["rps_of_rounds"]) == (200, 3, [100, 300, 200])
    # The journal's CPU time is shown, not counted.
    assert figures["cpu_us"] == 5000 + 10 + 5 + 40
    assert figures["cpu_us_of"]["journal"] == 30


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, set()),
        ({"ours": 4500}, {"insert: requests/s of the reference's"}),
        ({"errors": 1}, {f"{route}: failed" for route in report.ROUTES}),
    ],
)
def test_missed_goals_are_reported(changes: dict[str, Any], missed: set[str]) -> None:
    result = make_result(**changes)
    found = {goal["name"] for goal in result["goals"] if not goal["met"]}
    # 4500 is above 0.4 times the bare application's 10 000.
    assert found == missed


def test_report_has_every_part() -> None:
    text = "\n".join(report.tables(make_result()).values())
    for word in (
        "no_io",
        "reference",
        "nginx_return",
        "edge cache",
        "5,000,000 rows",
        "PSS",
        "met",
        "ours, 1 worker",
        "1% to 4%",
    ):
        assert word in text
    lines = [line for line in text.splitlines()[1:] if line]
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)


def test_a_partial_run_reports_its_parts() -> None:
    assert list(report.tables({"limits": {"nginx_return": 1.0}})) == ["limits"]


def test_publishing_replaces_earlier_tables() -> None:
    page = "# Page\n\n<!-- limits -->\nold\n<!-- end -->\n\nText, and <!-- routes -->\nkept\n<!-- end -->\n"
    result = {"limits": {"nginx_return": 1.0}}
    once = publish(page, report.tables(result))
    assert "old" not in once
    assert "kept" in once
    assert "nginx_return" in once
    assert publish(once, report.tables(result)) == once


def test_the_plot_has_a_bar_for_every_value() -> None:
    growth = make_result()["growth"]
    image = report.plot(growth)
    assert image.startswith("<svg ")
    heights = [
        float(height)
        for height in re.findall(r'<rect x="[^"]+" y="[^"]+" width="27" height="([^"]+)"', image)
    ]
    assert heights == pytest.approx([150 * 2000 / 3500, 150] * 2, abs=0.1)
