"""Limits by class of request, by client network and by key, in front of stub applications."""

import http.client
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from tests.edge import Answer, Site, StubEdge, assert_headers, log_lines, statuses_from, stub_edge

pytestmark = pytest.mark.on("edge", "complete")

SLOW = {"rate": "1r/m", "burst": 2}


@pytest.fixture(scope="module")
def edge(host: Host, site: Site) -> Iterator[StubEdge]:
    rates: dict[str, Any] = {"api": {"path": "/", "rate": "1000r/s", "burst": 5000, "key_rate": "1r/m"}}
    rates["api"]["key_burst"] = 2
    rates |= {"write": {"path": "/", "methods": ["POST", "PUT"], **SLOW}, "bulk": SLOW}
    socket = f"unix:{StubEdge.directory}/one.sock"
    others: dict[str, dict[str, Any]] = {
        "dry": {"path": "/dry/", "rate_limit_dry_run": True, "rate_limits": {"api": {**SLOW}}},
        "few": {"path": "/few/", "connections_per_client": 1},
        "exempt": {"path": "/exempt/", "rate_limits": {"api": {**SLOW}}},
    }
    for entry in others.values():
        entry |= {"names": [site.name], "upstreams": [socket]}
    with stub_edge(
        host,
        site,
        api={"bulk_paths": ["/headers"]},
        others=others,
        nginx_base_rate_limits=rates,
        nginx_rate_limit_exempt=["127.0.0.2"],
        nginx_trusted_proxies=["127.0.0.9"],
    ) as edge:
        yield edge


def statuses(site: Site, path: str, number: int, method: str = "GET", **headers: str) -> Counter[int]:
    """Return how often each status came; header names have underscores for hyphens."""
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    return Counter(site.request(path, method, spelled).status for _ in range(number))


def assert_refused(site: Site, answer: Answer, seconds: int) -> None:
    """Assert a 429 with everything that a client needs."""
    assert answer.status == 429
    assert answer.headers["Retry-After"] == str(seconds)
    answer.assert_problem()
    assert_headers(site, answer)


def test_writes_have_a_limit_of_their_own(edge: StubEdge) -> None:
    assert statuses(edge.site, "/status/200", 5, "POST") == {200: 3, 429: 2}
    assert_refused(edge.site, edge.site.request("/status/200", "PUT"), 60)
    assert statuses(edge.site, "/status/200", 5) == {200: 5}


def test_expensive_paths_have_a_limit_of_their_own(edge: StubEdge) -> None:
    assert statuses(edge.site, "/headers", 5) == {200: 3, 429: 2}
    assert_refused(edge.site, edge.site.request("/headers/x"), 60)


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
def test_a_key_has_one_limit_from_all_networks(host: Host, edge: StubEdge, header: str) -> None:
    key = f"Bearer {header * 20}{{}}"
    path = "/status/200"
    found = Counter(edge.site.request(path, headers={header: key.format("a")}).status for _ in range(4))
    assert found == {200: 3, 429: 1}
    address = edge.site.settings["private_address"]
    with host.sudo():
        again = statuses_from(host, edge.site, address, path, 2, {header: key.format("a")})
        other = statuses_from(host, edge.site, address, path, 2, {header: key.format("b")})
    assert (again, other) == ([429, 429], [200, 200])


def test_exempt_networks_have_no_limit(host: Host, edge: StubEdge) -> None:
    with host.sudo():
        assert statuses_from(host, edge.site, "127.0.0.2", "/exempt/status/200", 6) == [200] * 6
        limited = statuses_from(host, edge.site, "127.0.0.3", "/exempt/status/200", 6)
    assert Counter(limited) == {200: 3, 429: 3}


def test_an_ipv6_network_of_64_bits_has_one_limit(host: Host, edge: StubEdge) -> None:
    def statuses_of(client: str, number: int) -> list[int]:
        headers = {"X-Forwarded-For": client}
        return statuses_from(host, edge.site, "127.0.0.9", "/exempt/status/200", number, headers)

    with host.sudo():
        assert statuses_of("2001:db8:0:1::1", 3) == [200] * 3
        assert statuses_of("2001:db8:0:1:ffff::2", 1) == [429]
        assert statuses_of("2001:db8:0:2::1", 1) == [200]


def test_a_dry_run_counts_and_refuses_nothing(host: Host, edge: StubEdge) -> None:
    assert statuses(edge.site, "/dry/status/200", 6) == {200: 6}
    lines = log_lines(host, "/dry/status/200", f"{edge.directory}/access.log")
    assert Counter(line["limit"] for line in lines) == {"PASSED": 3, "REJECTED_DRY_RUN": 3}


def test_a_service_has_a_connection_limit_of_its_own(edge: StubEdge) -> None:
    """A request with an incomplete body stays in flight; one request over the limit is refused."""
    with edge.site.connect() as open_request:
        request = f"PUT /few/ HTTP/1.1\r\nHost: {edge.site.name}\r\nContent-Length: 5\r\n\r\n"
        open_request.sendall(request.encode())
        time.sleep(0.5)
        assert_refused(edge.site, edge.site.request("/few/status/200"), 60)
        assert edge.site.request("/status/200").status == 200


def test_redirects_and_unknown_names_are_limited(edge: StubEdge) -> None:
    site = edge.site
    for port, name, status in ((site.plain_port, site.name, 301), (site.port, "unknown.example", 421)):
        found = Counter(flood(site, "/anything", 400, port=port, host=name))
        assert found.keys() == {status, 429}


def flood(site: Site, path: str, number: int, *, port: int, host: str) -> Iterator[int]:
    """Yield the statuses of requests on one connection."""
    connection = http.client.HTTPConnection(site.name)
    connection.sock = site.connect(port=port)
    for _ in range(number):
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        response.read()
        yield response.status
    connection.close()


def test_a_flood_of_refusals_does_not_fill_the_disk(host: Host, edge: StubEdge) -> None:
    """10 minutes of 20,000 refusals a second must write less than 256 MiB: 22 bytes each."""
    site, log = edge.site, f"{edge.directory}/access.log"
    with host.sudo():
        before = host.file(log).size
        found = Counter(
            status
            for _ in range(4)
            for status in flood(site, "/exempt/flood", 900, port=site.port, host=site.name)
        )
        lines = log_lines(host, "/exempt/flood", log)
        # Counted there: requests of other tests have bytes that are no text.
        logged = host.run("journalctl --since=-1min -o cat -t nginx | grep -acF /exempt/flood").stdout
        assert (host.file(log).size - before) / found[429] < 22
    assert logged == "0\n"
    refusals = [line for line in lines if line["status"] == 429]
    # A sample of one in a hundred: 36 of 3,600, outside of 10 to 80 once in a million runs.
    assert 10 <= len(refusals) <= 80
    assert {line["weight"] for line in refusals} == {100}
    assert found[429] >= 3500
