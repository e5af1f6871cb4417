"""Security headers: on every answer, with the marks of MDN's HTTP Observatory."""

import pytest

from tests.edge import Site, assert_headers
from tests.observatory import directives, score


@pytest.mark.on("edge")
def test_the_bare_host_scores_130(site: Site) -> None:
    points = score(site.request("/", port=80), site.request("/"))
    assert 100 + sum(points.values()) >= 130, points


@pytest.mark.on("edge", "complete")
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("GET", "/metrics", 404), ("TRACE", "/", 405), ("POST", "/api/v1/products", 413)],
)
def test_answers_of_the_service_and_of_the_edge_isolate_their_origin(
    site: Site, method: str, path: str, status: int
) -> None:
    answer = site.request(path, method, {"Content-Length": "9000000"} if status == 413 else None)
    assert answer.status == status
    assert_headers(site, answer)
    policy = directives(answer.headers["Content-Security-Policy"])
    for name in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert policy[name] == {"'none'"}, name
    for name in ("Opener", "Resource"):
        assert answer.headers[f"Cross-Origin-{name}-Policy"] == "same-origin"
