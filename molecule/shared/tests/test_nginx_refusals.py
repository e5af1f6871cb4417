"""What Nginx itself answers: problem documents, also for browsers of other origins."""

import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from tests.edge import Answer, Site, StubEdge, assert_headers, log_lines, stub_edge

pytestmark = pytest.mark.on("edge", "complete")

ORIGIN = "https://shop.example"


@pytest.fixture(scope="module")
def edge(host: Host, site: Site) -> Iterator[StubEdge]:
    limits = {"site": {"path": "/", "rate": "30r/m", "burst": 60}}
    limits["tight"] = {"path": "/tight", "rate": "1r/m", "burst": 1}
    variables: dict[str, Any] = {"nginx_rate_limits": {"api": None, **limits}, "nginx_cors_origins": [ORIGIN]}
    with stub_edge(host, site, nginx_cors_credentials=True, **variables) as edge:
        yield edge


def request(path: bytes = b"/", version: bytes = b"HTTP/1.1", **headers: bytes) -> bytes:
    """Return a request as bytes; header names have underscores for hyphens."""
    lines = [b"%b: %b" % (name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return b"\r\n".join([b"GET %b %b" % (path, version), *lines, b"", b""])


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"G\x01T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (request(b"/%", Host=b"{name}"), 400),
        (request(b"/" + b"x" * 9000, Host=b"{name}"), 414),
        (request(Host=b"{name}", X_Large=b"x" * 9000), 431),
        (request(version=b"HTTP/3.0", Host=b"{name}"), 505),
        (b"POST / HTTP/1.1\r\nHost: {name}\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: {name}\r\nTransfer-Encoding: x\r\n\r\n", 501),
    ],
)
def test_requests_that_cannot_be_parsed_get_problems(site: Site, raw: bytes, status: int) -> None:
    answer = site.send(raw.replace(b"{name}", site.name.encode()))
    assert answer.status == status
    answer.assert_problem()
    assert_headers(site, answer)


def test_plain_http_on_a_tls_port_gets_a_problem(site: Site) -> None:
    with socket.create_connection((site.address, site.port), timeout=10) as plain:
        plain.sendall(request(Host=site.name.encode()))
        head, _, body = plain.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Type: application/problem+json" in head
    assert json.loads(body)["status"] == 400


@pytest.mark.parametrize("protocol", ["http1.1", "http2"])
def test_requests_just_below_the_limits_reach_the_service(site: Site, protocol: str) -> None:
    """The limits of the edge are below Gunicorn's: a request that passes Nginx gets the service's 404."""
    options = ["--silent", "--insecure", f"--{protocol}", "--output", "-", "--write-out", "\n%{http_code}"]
    url = f"https://{site.name}/no/such/page"

    def answer(*more: str) -> tuple[int, str]:
        done = subprocess.run(["curl", *options, *more], capture_output=True, text=True, check=True)
        body, _, status = done.stdout.rpartition("\n")
        assert json.loads(body)["status"] == int(status)
        return int(status), json.loads(body)["title"]

    many = [word for number in range(900) for word in ("--header", f"X-{number}: 1")]
    assert answer(url, *many)[0] == 404
    assert answer(f"{url}/{'x' * 7900}")[0] == 404
    assert answer(url, "--header", f"X-Large: {'x' * 7900}")[0] == 404
    # HTTP/2 compresses a zero to five bits. Nginx resets a stream whose fields are longer than that.
    for length in (8000, 8200, 12000):
        assert answer(f"{url}/{'0' * length}")[0] in {414, 431}
        status, _ = answer(url, "--header", f"X-Large: {'0' * length}")
        assert status == (404 if protocol == "http2" else 431)


def test_refused_requests_are_logged_with_their_own_method_and_path(host: Host, site: Site) -> None:
    marker = f"marker{id(host)}"
    site.send(f"POST /{marker}%0a?secret=1 HTTP/1.1\r\nHost: {site.name}\r\n\r\n".encode())
    (line,) = log_lines(host, marker)
    assert (line["method"], line["path"], line["status"]) == ("POST", f"/{marker}%0a", 400)


# ---- Browsers of other origins ----


def assert_readable(answer: Answer) -> None:
    """Assert that a script of the origin may read the answer and its Retry-After."""
    assert answer.headers.get_all("Access-Control-Allow-Origin") == [ORIGIN]
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
    assert "Origin" in answer.headers.get_all("Vary", [])


def test_refusals_are_readable_to_allowed_origins(edge: StubEdge) -> None:
    site, origin = edge.site, {"Origin": ORIGIN}
    assert_readable(site.request("/metrics", headers=origin))
    assert_readable(site.request("/x", "POST", {**origin, "Content-Length": "9000000"}))
    limited = [site.request("/tight", headers=origin) for _ in range(4)][-1]
    assert limited.status == 429
    assert_readable(limited)
    edge.stop_application("one")
    unreachable = site.request("/", headers=origin)
    edge.start_application("one")
    assert unreachable.status == 502
    assert_readable(unreachable)
    for headers in ({}, {"Origin": "https://stranger.example"}):
        other = site.request("/metrics", headers=headers)
        assert other.headers["Access-Control-Allow-Origin"] is None
        assert other.headers["Access-Control-Allow-Credentials"] is None
    # The application decides about its own answers.
    assert site.request("/", headers=origin).headers["Access-Control-Allow-Origin"] is None


def test_preflights_do_not_count_in_the_zone_of_their_route(edge: StubEdge) -> None:
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    statuses = [edge.site.request("/tight", "OPTIONS", preflight).status for _ in range(20)]
    assert statuses == [200] * 20
    statuses += [edge.site.request("/tight", "OPTIONS", preflight).status for _ in range(60)]
    assert statuses[-1] == 429


def test_maintenance_is_readable_to_allowed_origins_and_lets_preflights_pass(edge: StubEdge) -> None:
    directory, site = f"{edge.directory}/maintenance/api", edge.site
    edge.host.check_output(
        f"mkdir -p {directory} && echo '{{}}' > {directory}/problem.json && touch {directory}/on"
    )
    answer = site.request("/x", headers={"Origin": ORIGIN})
    preflight = site.request("/x", "OPTIONS", {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"})
    edge.host.check_output(f"rm -r {directory}")
    assert (answer.status, preflight.headers["X-Served-By"]) == (503, "one")
    assert_readable(answer)
