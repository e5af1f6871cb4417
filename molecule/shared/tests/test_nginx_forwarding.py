"""What applications get from Nginx and clients from applications, directly and over a private listener."""

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from tests.edge import Site, StubEdge, stub_edge

pytestmark = pytest.mark.on("edge", "complete")

FORGED = {
    "Forwarded": "for=192.0.2.1;proto=http",
    "Path-Info": "/forged",
    "Proxy": "http://192.0.2.1",
    "Remote-User": "root",
    "Script-Name": "/forged",
    "X-Forwarded-Prefix": "/forged",
    "X-Forwarded-Protocol": "http",
    "X-Forwarded-Ssl": "off",
    "X-Forwarded-User": "root",
    "X-Original-URL": "/metrics",
    "X-Own-User": "root",
    # Gunicorn takes a name with underscores from a proxy that it trusts.
    "PATH_INFO": "/forged",
    "REMOTE_USER": "root",
    "SCRIPT_NAME": "/forged",
}
REPLACED = {"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Real-IP"}


@pytest.fixture(scope="module", params=["socket", "private listener"])
def edge(request: pytest.FixtureRequest, host: Host, site: Site) -> Iterator[StubEdge]:
    """An edge that reaches the application on its socket, and one that reaches it as in the shape split."""
    variables: dict[str, Any] = {
        "nginx_untrusted_headers": ["X-Own-User"],
        "nginx_read_timeout_seconds": 2,
        "nginx_stream_paths": {"/slow": {"idle_seconds": 10}},
    }
    if request.param == "private listener":
        listener = f"{site.address}:18445"
        variables |= {
            "api": {"upstreams": [listener], "socket": f"{StubEdge.directory}/one.sock"},
            "nginx_backend": True,
            "nginx_backend_listen": [listener],
        }
    with stub_edge(host, site, "one", **variables) as edge:
        yield edge


def test_headers_of_another_proxy_reach_no_application(edge: StubEdge) -> None:
    forged = FORGED | dict.fromkeys(REPLACED, "forged")
    answer = edge.site.request("/headers", headers=forged)
    received = {name.lower(): value for name, value in json.loads(answer.body)}
    names = {name.lower() for name in FORGED}
    assert not received.keys() & (names | {name.replace("_", "-") for name in names})
    assert "forged" not in received.values()
    assert received["x-forwarded-proto"] == "https"
    assert received["x-forwarded-for"] == received["x-real-ip"] != edge.site.address


def test_the_service_ignores_headers_of_another_proxy(site: Site) -> None:
    """Gunicorn answers 400 to a scheme that contradicts X-Forwarded-Proto."""
    assert site.request("/health/live", headers=FORGED).status == 200


def arrivals(site: Site, path: str) -> list[float]:
    """Return when each event of a stream arrived, in seconds since the request."""
    with site.connect() as connection:
        begin = time.monotonic()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {site.name}\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        times = []
        while response.read1(1 << 16):
            times.append(time.monotonic() - begin)
        response.close()
    return times


@pytest.mark.parametrize("query", ["", "&close=1", "&type=application/x-ndjson"])
def test_events_arrive_one_by_one(edge: StubEdge, query: str) -> None:
    """The role app adds X-Accel-Buffering to event streams; applications set it for others."""
    times = arrivals(edge.site, f"/events?pause=0.2&accel=1{query}")
    assert len(times) == 5
    assert times[0] < 0.5
    assert 0.6 < times[-1] - times[0] < 3


def test_a_stream_may_idle_as_long_as_its_path_allows(edge: StubEdge) -> None:
    assert edge.site.request("/slow?seconds=3").status == 200
    if edge.variables.get("nginx_backend"):
        return  # The edge's own timeout is the same in both cases.
    assert edge.site.request("/slower?seconds=3").status == 200


def test_large_response_headers_pass_up_to_the_limit(edge: StubEdge) -> None:
    assert edge.site.request("/large?bytes=14000").status == 200
    assert edge.site.request("/large?bytes=20000").status == 502
    assert edge.site.request("/").status == 200


def test_an_application_that_cannot_be_reached_is_a_bad_gateway(edge: StubEdge) -> None:
    edge.stop_application("one")
    answer = edge.site.request("/")
    edge.start_application("one")
    assert answer.status == 502
    answer.assert_problem()
    assert edge.site.request("/").status == 200
