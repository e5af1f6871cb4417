"""The edge's cache."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from testinfra.host import Host

from tests.edge import (
    Answer,
    Site,
    StubEdge,
    assert_headers,
    log_lines,
    stub_edge,
    unreachable_application,
)


@dataclass
class Readers:
    """Clients of a URL that is not cached yet; the access log has the cache status of each request."""

    host: Host
    site: Site
    path: str
    lifetime: float
    references: list[str] = field(default_factory=list)

    def read(self, **headers: str) -> Answer:
        self.references.append(uuid.uuid4().hex)
        return self.site.request(self.path, headers={**headers, "X-Request-ID": self.references[-1]})

    def cache_statuses(self) -> list[str]:
        lines = {line["request_id"]: line["cache"] for line in log_lines(self.host, self.path.split("?")[0])}
        return [lines[reference] for reference in self.references]


@pytest.fixture
def readers(host: Host, site: Site) -> Readers:
    (route,) = site.settings["__nginx_sites"][0]["cached_paths"]
    # Nginx counts whole seconds.
    return Readers(host, site, f"{route['path']}?category={uuid.uuid4()}", route["seconds"] + 1.1)


@pytest.mark.on("edge", "complete")
def test_responses_are_cached_for_the_configured_time(readers: Readers) -> None:
    first, second = readers.read(), readers.read()
    assert (first.status, second.status) == (200, 200)
    assert first.body == second.body
    assert second.headers["X-Request-ID"] == readers.references[-1]
    assert_headers(readers.site, second)
    time.sleep(readers.lifetime)
    readers.read()
    assert readers.cache_statuses() == ["MISS", "HIT", "EXPIRED"]


@pytest.mark.parametrize("value", ["session=ann", "0"])
@pytest.mark.parametrize("credential", ["Authorization", "Cookie", "X-API-Key", "Proxy-Authorization"])
@pytest.mark.on("edge", "complete")
def test_requests_with_credentials_bypass_the_cache(readers: Readers, credential: str, value: str) -> None:
    readers.read(**{credential: value})
    readers.read()
    readers.read(**{credential: value})
    assert readers.cache_statuses() == ["BYPASS", "MISS", "BYPASS"]


@pytest.mark.on("edge_beside_app", "complete")
def test_a_stale_response_is_served_while_the_application_is_down(host: Host, readers: Readers) -> None:
    first = readers.read()
    with unreachable_application(host, readers.site.settings):
        time.sleep(readers.lifetime)
        late, with_credentials = readers.read(), readers.read(Authorization="session=ann")
    assert (late.status, late.body) == (200, first.body)
    assert with_credentials.status == 502
    assert readers.cache_statuses() == ["MISS", "STALE", "BYPASS"]


@pytest.fixture(scope="module")
def stub(host: Host, site: Site) -> Iterator[StubEdge]:
    """An edge of an application whose answers are numbered."""
    cached = {"/counted": {"seconds": 60}}
    with stub_edge(host, site, nginx_cached_paths=cached, nginx_credential_headers=["X-Tenant"]) as edge:
        yield edge


def body(edge: StubEdge, path: str, **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return edge.site.request(path, headers=named).body


@pytest.mark.on("edge", "complete")
@pytest.mark.parametrize("name", ["X_API_Key", "X_Auth_Token", "X_Access_Token", "X_Tenant", "Authorization"])
def test_no_two_clients_with_credentials_share_a_response(stub: StubEdge, name: str) -> None:
    path = f"/counted/{name}"
    first, second = body(stub, path, **{name: "1"}), body(stub, path, **{name: "2"})
    anonymous = body(stub, path)
    assert len({first, second, anonymous}) == 3
    assert body(stub, path) == anonymous


@pytest.mark.on("edge", "complete")
def test_responses_that_vary_are_stored_for_each_value(stub: StubEdge) -> None:
    path = "/counted/languages?vary=Accept-Language"
    english, german = body(stub, path, Accept_Language="en"), body(stub, path, Accept_Language="de")
    assert english != german
    assert body(stub, path, Accept_Language="en") == english
    every = "/counted/every?vary=*"
    assert body(stub, every) != body(stub, every)
