"""Several application servers behind an edge: what they answer, and what happens when they fail."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest
from testinfra.host import Host

from tests.edge import Site, StubEdge, stub_edge

pytestmark = pytest.mark.on("edge", "complete")


@pytest.fixture(scope="module")
def edge(host: Host, site: Site) -> Iterator[StubEdge]:
    with stub_edge(host, site, "one", "two") as edge:
        yield edge


def served(
    edge: StubEdge, path: str, count: int = 12, method: str = "GET"
) -> Counter[tuple[int, str | None]]:
    """Send requests and count (status, server)."""
    answers = [edge.site.request(path, method) for _ in range(count)]
    return Counter((answer.status, answer.headers["X-Served-By"]) for answer in answers)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_errors_of_the_application_pass_through_and_take_no_server_out(edge: StubEdge, status: int) -> None:
    """As with a database that all servers have lost: clients see the answers, and their Retry-After."""
    assert served(edge, f"/status/{status}") == {(status, "one"): 6, (status, "two"): 6}
    answer = edge.site.request(f"/status/{status}")
    assert (answer.body, answer.headers["Retry-After"]) == (b"the application's own", "7")
    assert served(edge, "/") == {(200, "one"): 6, (200, "two"): 6}


def test_a_server_that_cannot_be_reached_is_avoided_without_a_failed_request(edge: StubEdge) -> None:
    edge.stop_application("one")
    try:
        assert served(edge, "/", method="POST") == {(200, "two"): 12}
    finally:
        edge.start_application("one")


def test_requests_are_served_at_once_after_all_servers_have_failed(edge: StubEdge) -> None:
    for name in edge.names:
        edge.stop_application(name)
    failed = served(edge, "/", count=20)
    edge.start_application("two")
    begin = time.monotonic()
    back = served(edge, "/")
    edge.start_application("one")
    assert failed == {(502, None): 20}
    assert back == {(200, "two"): 12}
    assert time.monotonic() - begin < 8, "too late to show it: nginx tries failed servers again after 10 s"


def test_a_drained_server_gets_requests_only_if_all_others_fail(edge: StubEdge) -> None:
    drain = f"/run/nginx-drain/api-unix-{edge.directory[1:].replace('/', '-')}-one-sock"
    edge.host.check_output(f"mkdir -p {drain}")
    try:
        assert served(edge, "/") == {(200, "two"): 12}
        edge.stop_application("two")
        assert served(edge, "/") == {(200, "one"): 12}
    finally:
        edge.host.check_output(f"rmdir {drain}")
        edge.start_application("two")
