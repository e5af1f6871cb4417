"""Every query of every dashboard, sent as Grafana sends it, returns finite values."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import shlex
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from testinfra.host import Host

from tests import dashboards

BOARDS = dashboards.load()
# Queries without data on lab hosts, and the reason.
MISSING = {
    "Hosts: Clock A": "A container may not read the clock's state, so the exporter has no sample of it.",
}
# A rate over four scrapes of 15 seconds needs this long after a new series appears.
SECONDS = 60
# Sends all queries in one SSH session, and summarises the results on the host to keep its output small.
SCRIPT = """
import json, math, sys, urllib.error, urllib.request
answers = []
for url in json.loads(sys.stdin.read()):
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            data = json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        answers.append({"error": json.load(error)["error"]})
        continue
    if isinstance(data, list):
        answers.append({"values": data})
        continue
    series = data["result"]
    numbers = [float(pair[1]) for one in series for pair in one.get("values", [one.get("value")])]
    answers.append({
        "labels": [one["metric"] for one in series],
        "finite": sum(map(math.isfinite, numbers)),
        "infinite": sum(map(math.isinf, numbers)),
    })
print(json.dumps(answers))
"""
Queries = Callable[[list[str]], list[dict[str, Any]]]


@pytest.fixture
def query_all(host: Host, variables: dict[str, Any]) -> Queries:
    """Return a function that sends queries to Prometheus from its own host."""

    def send(paths: list[str]) -> list[dict[str, Any]]:
        address = variables["prometheus_listen_address"]
        urls = json.dumps([f"http://{address}/api/v1/{path}" for path in paths])
        script = shlex.join(["python3", "-c", SCRIPT])
        answers: list[dict[str, Any]] = json.loads(
            host.check_output(f"printf %s {shlex.quote(urls)} | {script}")
        )
        return answers

    return send


@pytest.fixture(scope="module")
def traffic(host: Host, all_variables: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Read products a few times a second from the edge on this host, or else from every edge."""
    edges = [known for known in all_variables.values() if "edge" in known["group_names"]]
    edges = [known for known in edges if known is all_variables[host.backend.hostname]] or edges
    ended = threading.Event()

    def read() -> None:
        for number in itertools.count():
            turn, index = divmod(number, len(edges))
            known = edges[index]
            context = ssl.create_default_context(cadata=known["tls_ca_certificate"])
            site = http.client.HTTPSConnection(known["public_name"], context=context, timeout=20)
            # A product, which the service caches, and a list, which it does not; 404 counts as a response.
            site.request("GET", f"/api/v1/products/{turn % 5 + 1}" if turn % 2 else "/api/v1/products")
            site.getresponse()
            site.close()
            if ended.wait(0.25):
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    yield
    ended.set()
    reader.join()


def query_path(query: dashboards.Query, now: float) -> str:
    """Return the path and parameters of a query in Prometheus' API."""
    if query.instant:
        return f"query?{urlencode({'query': query.expr, 'time': now})}"
    # Grafana aligns both ends to whole steps.
    end = now // query.step * query.step
    span = {"start": end - query.seconds // query.step * query.step, "end": end, "step": query.step}
    return f"query_range?{urlencode({'query': query.expr, **span})}"


def empty_queries(query_all: Queries, board: dict[str, Any], scrape_seconds: int) -> list[str]:
    """Return the queries for which Grafana would show no values, with the reason."""
    now = time.time()
    sent = list(dashboards.queries(board, scrape_seconds))
    found = []
    for query, answer in zip(sent, query_all([query_path(query, now) for query in sent]), strict=True):
        if "error" in answer:
            found.append(f"{query.where}: {answer['error']}")
        elif not answer["finite"] and query.where not in MISSING:
            found.append(f"{query.where}: nothing for {query.expr}")
        elif answer["infinite"]:
            found.append(f"{query.where}: infinite")
        labels_in_legend = set(re.findall(r"{{(\w+)}}", query.legend))
        found += [
            f"{query.where}: no {name} in {labels}"
            for labels in answer.get("labels", [])
            for name in labels_in_legend - labels.keys()
        ]
    return found


@pytest.mark.on("monitoring")
@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize("name", BOARDS)
def test_every_query_returns_values(query_all: Queries, variables: dict[str, Any], name: str) -> None:
    deadline = time.monotonic() + SECONDS
    scrape_seconds = variables["prometheus_scrape_interval_seconds"]
    while (found := empty_queries(query_all, BOARDS[name], scrape_seconds)) and time.monotonic() < deadline:
        time.sleep(3)
    assert found == []


@pytest.mark.on("monitoring")
@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_has_values(query_all: Queries, name: str) -> None:
    variables = dashboards.variables(BOARDS[name])
    paths = [f"label/{label}/values?{urlencode({'match[]': text})}" for text, label in variables.values()]
    answers = query_all(paths)
    assert {
        key: bool(answer.get("values")) for key, answer in zip(variables, answers, strict=True)
    } == dict.fromkeys(variables, True)


@pytest.mark.on("monitoring")
@pytest.mark.parametrize("metric", ["node_uname_info", "slo:budget", "pg_up"])
def test_a_renamed_metric_is_detected(query_all: Queries, variables: dict[str, Any], metric: str) -> None:
    """The other tests fail if a query names a metric that does not exist."""
    text = json.dumps(BOARDS)
    boards = json.loads(text.replace(metric, f"{metric}_renamed"))
    found = [
        fault
        for board in boards.values()
        for fault in empty_queries(query_all, board, variables["prometheus_scrape_interval_seconds"])
    ]
    assert [fault for fault in found if f"{metric}_renamed" in fault]
