"""Files below /static/ and /media/."""

from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from tests.edge import Site, StubEdge, assert_headers, stub_edge

pytestmark = pytest.mark.on("edge", "complete")

ROOT = "/srv/stub-files"
FILES = {
    "static/app.3f2a91c0.js": "let a = 1",
    "static/app.js": "let b = 2",
    "static/.git/config": "secret",
    "static/sub/style-0123456789abcdef.css": "b {}",
    "media/page.html": "<script>alert(1)</script>",
    "media/run.py": "print(1)",
    "private": "secret",
}


@pytest.fixture(scope="module")
def edge(host: Host, site: Site) -> Iterator[StubEdge]:
    with host.sudo():
        host.check_output(f"rm -rf {ROOT} && mkdir -p {ROOT}/static/.git {ROOT}/static/sub {ROOT}/media")
        for name, content in FILES.items():
            host.check_output(f"echo '{content}' > {ROOT}/{name}")
        host.check_output(f"ln -s {ROOT}/private {ROOT}/media/link && chown -h www-data {ROOT}/media/link")
        host.check_output(f"chmod -R a+rX {ROOT}")
    directories: dict[str, Any] = {
        "nginx_static_directory": f"{ROOT}/static",
        "nginx_media_directory": f"{ROOT}/media",
    }
    with stub_edge(host, site, **directories) as edge:
        yield edge
        host.check_output(f"rm -rf {ROOT}")


def test_files_are_served_with_types_lifetimes_and_security_headers(edge: StubEdge) -> None:
    for path, type_, lifetime in [
        (
            "/static/app.3f2a91c0.js",
            "application/javascript; charset=utf-8",
            "public, max-age=31536000, immutable",
        ),
        (
            "/static/sub/style-0123456789abcdef.css",
            "text/css; charset=utf-8",
            "public, max-age=31536000, immutable",
        ),
        ("/static/app.js", "application/javascript; charset=utf-8", "public, max-age=3600"),
        ("/media/run.py", "application/octet-stream", "public, max-age=3600"),
    ]:
        answer = edge.site.request(path)
        assert answer.status == 200
        assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (type_, lifetime)
        assert answer.body.decode().strip() == FILES[path[1:]]
        assert answer.headers["ETag"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert edge.site.request(path, headers={"If-None-Match": answer.headers["ETag"]}).status == 304
    assert_headers(edge.site, edge.site.request("/static/app.js"))
    page = edge.site.request("/media/page.html")
    assert any("sandbox" in policy for policy in page.headers.get_all("Content-Security-Policy", []))


@pytest.mark.parametrize(
    "path",
    [
        *("/static/../private", "/static/..%2fprivate", "/static../private", "/static%2f..%2f..%2fprivate"),
        *("/static/.git/config", "/static/%2egit/config", "/static/sub/../.git/config", "/static/"),
        *(
            "/static/sub/",
            "/static/sub",
            "/media/link",
            "/media/..",
            "/static/app.js%00.css",
            "/static/none.js",
        ),
        *("/static/..\\private", "/static/app.js/", "/static/app.js%00.css", "/static/app.js%0a"),
    ],
)
def test_nothing_else_is_served(edge: StubEdge, path: str) -> None:
    answer = edge.site.send_path(path.encode())
    assert answer.status in {200, 301, 400, 403, 404}
    assert b"secret" not in answer.body
    if answer.status == 200:
        assert answer.headers["X-Served-By"] == "one", "the directory has a listing"
    else:
        assert answer.headers["Cache-Control"] is None or answer.status == 301


def test_files_cannot_be_changed_and_do_not_run(edge: StubEdge) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = edge.site.request("/media/run.py", method)
        assert answer.status == 405
        answer.assert_problem()
