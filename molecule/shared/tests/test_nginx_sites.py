"""Several services behind one edge: names, paths, files of releases, maintenance and the private listener."""

import json
import shlex
from collections.abc import Iterator

import pytest
from testinfra.host import Host

from tests.edge import Answer, Site, StubEdge, log_lines, read, stub_edge
from tests.edge_disguises import disguises
from tests.tls import client_pair

pytestmark = pytest.mark.on("edge", "complete")

LISTENER = ("127.0.0.9", 18446)
LOCAL = ("127.0.0.9", 18447)
HASHED = "app.3f2a91c{}.js"
IMMUTABLE = "public, max-age=31536000, immutable"


@pytest.fixture(scope="module")
def edge(host: Host, site: Site) -> Iterator[StubEdge]:
    """An edge with the service api at the root, shop below it, and chat at a name of its own."""
    sockets = {name: f"{StubEdge.directory}/{name}.sock" for name in ("one", "two", "three")}
    shop = {
        "names": [site.name],
        "redirect_names": ["shop.invalid"],
        "path": "/shop/",
        "upstreams": [f"unix:{sockets['two']}"],
        "socket": sockets["two"],
        "page_policy": "pages",
        "health_path": "/healthz",
        "private_paths": ["/admin"],
        "body_limit": "9k",
        "rate_limits": {"api": {"rate": "1000r/s", "burst": 1000}},
        "static": [{"path": "static/", "serve_at": "/static/"}],
        "state": [{"name": "media", "serve_at": "/media/"}],
    }
    chat = {"names": ["chat.invalid"], "upstreams": [f"unix:{sockets['three']}"], "headers": {"X-Chat": "1"}}
    make_files(host)
    api = {"upstreams": [f"unix:{sockets['one']}"], "socket": sockets["one"], "body_limit": "20k"}
    with stub_edge(
        host,
        site,
        *sockets,
        api=api,
        others={"shop": shop, "chat": chat},
        nginx_backend=True,
        nginx_backend_listen=[f"{address}:{port}" for address, port in (LISTENER, LOCAL)],
        __nginx_loopback=f"^{':'.join(map(str, LOCAL))}",
    ) as edge:
        yield edge
    with host.sudo():
        host.check_output("rm -rf /srv/shop /var/lib/shop")


def make_files(host: Host) -> None:
    """Write three releases of shop, of which 2 is live, 1 came before and 3 is being rolled out."""
    steps = ["mkdir -p /srv/shop/instances/2.1 /var/lib/shop/media"]
    for release in (1, 2, 3):
        static = f"/srv/shop/releases/{release}/code/static"
        steps += [f"mkdir -p {static}/.git", f"echo secret > {static}/.git/config"]
        steps += [f"echo {release} > {static}/{name}" for name in (HASHED.format(release), "app.js")]
        steps += [f"echo {release} > {static}/only{release}.js"]
    steps += [
        "echo secret > /srv/shop/releases/2/code/private",
        "ln -sfn /srv/shop/releases/2/code /srv/shop/instances/2.1/code",
        "ln -sfn /srv/shop/instances/2.1 /srv/shop/current",
        "ln -sfn /srv/shop/releases/1 /srv/shop/previous",
        "ln -sfn /srv/shop/releases/3 /srv/shop/next",
        "echo '<script>' > /var/lib/shop/media/page.html",
        "chmod -R a+rX /srv/shop /var/lib/shop",
    ]
    with host.sudo():
        host.check_output(" && ".join(steps))


def served_by(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.headers["X-Served-By"]


def test_the_path_and_the_name_choose_the_service(host: Host, edge: StubEdge) -> None:
    for path, name in {
        "/": "one",
        "/shopping": "one",
        "/shop;x/y": "one",
        "/shop/": "two",
        "/shop/x%2fy?z=/": "two",
        "/%73hop/x": "two",
        "//shop/x": "two",
    }.items():
        answer = edge.site.request(path)
        assert served_by(answer) == (200, name), path
        # The application gets the path as the client wrote it, with the prefix.
        assert answer.body == path.encode()
    assert served_by(edge.site.request("/", host="chat.invalid")) == (200, "three")
    moved = edge.site.request("/shop?a=1")
    assert (moved.status, moved.headers["Location"]) == (301, f"https://{edge.site.name}/shop/?a=1")
    lines = log_lines(host, "/shop/x", f"{edge.directory}/access.log")
    assert {line["service"] for line in lines} == {"shop"}


def test_redirected_names_lead_to_the_service(edge: StubEdge) -> None:
    for port in (edge.site.port, edge.site.plain_port):
        answer = edge.site.request("/x?y=1", host="shop.invalid", port=port)
        assert (answer.status, answer.headers["Location"]) == (301, f"https://{edge.site.name}/shop/x?y=1")


def test_headers_fit_the_service(edge: StubEdge) -> None:
    policies = {path: edge.site.request(path).headers["Content-Security-Policy"] for path in ("/", "/shop/")}
    assert policies["/"].startswith("default-src 'none'; ")
    assert "script-src 'self' 'unsafe-inline';" in policies["/shop/"]
    # The documentation of FastAPI loads scripts and styles from a public host.
    for path in ("/shop/docs", "/shop/redoc"):
        documentation = edge.site.request(path).headers["Content-Security-Policy"]
        assert "script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net " in documentation
    refused = edge.site.request("/shop/metrics")
    assert (refused.status, refused.headers["X-Frame-Options"]) == (404, "SAMEORIGIN")
    assert edge.site.request("/", host="chat.invalid").headers["X-Chat"] == "1"
    assert edge.site.request("/").headers["X-Chat"] is None


def test_private_paths_and_limits_are_those_of_the_service(edge: StubEdge) -> None:
    for path in disguises(edge.site.name, "/shop/admin"):
        # A path that is not below /shop/ belongs to the other service.
        assert edge.site.send_path(path).headers["X-Served-By"] in {None, "one"}, path
    for path in (b"/shop/admin", b"/shop//admin", b"/shop/;x/ADMIN", b"/%73hop/%61dmin", b"/shop/admin%0a"):
        answer = edge.site.send_path(path)
        assert answer.status in {400, 404}, path
        answer.assert_problem()
    assert served_by(edge.site.request("/admin")) == (200, "one")
    large = {"Content-Length": str(15 * 1024)}
    assert edge.site.request("/shop/x", "POST", large).status == 413


@pytest.mark.parametrize("route", ["edge", "private listener"])
def test_files_of_the_live_release_and_hashed_ones_of_its_neighbours_are_served(
    host: Host, edge: StubEdge, route: str
) -> None:
    def get(name: str) -> tuple[str, str]:
        """Return the body and the header Cache-Control."""
        if route == "edge":
            answer = edge.site.request(f"/shop/static/{name}")
            return answer.body.decode().strip(), answer.headers["Cache-Control"] or ""
        _, headers, body = ask_listener(host, edge.site, "shop", f"/shop/static/{name}")
        return body.strip(), headers.get("Cache-Control", "")

    assert get("app.js") == ("2", "no-cache")
    for release in (1, 2, 3):
        assert get(HASHED.format(release)) == (str(release), IMMUTABLE)
    # What the live release no longer has is gone, and the application may know the path.
    for name in ("only1.js", "only3.js", ".git/config", "", "../private"):
        assert "secret" not in get(name)[0]
        assert get(name)[0] not in {"1", "3"}, name


def test_what_is_no_file_goes_to_the_application(edge: StubEdge) -> None:
    for method, path in (("GET", "/shop/static/none.js"), ("POST", "/shop/media/"), ("GET", "/shop/media/x")):
        assert served_by(edge.site.request(path, method)) == (200, "two")
    page = edge.site.request("/shop/media/page.html")
    assert page.body.decode().strip() == "<script>"
    assert any("sandbox" in policy for policy in page.headers.get_all("Content-Security-Policy", []))


# Arguments: address, port, name in the handshake (empty: plain HTTP), path, Host, CA, certificate with key.
CLIENT = """
import http.client, json, socket, ssl, sys, tempfile
address, port, name, path, host, ca, pair = sys.argv[1:]
link = socket.create_connection((address, int(port)), 5)
if name:
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(pair)
        file.flush()
        context.load_cert_chain(file.name)
    link = context.wrap_socket(link, server_hostname=name)
connection = http.client.HTTPConnection(host)
connection.sock = link
connection.request("GET", path)
answer = connection.getresponse()
print(json.dumps([answer.status, dict(answer.headers), answer.read().decode()]))
"""


def ask_listener(
    host: Host, site: Site, service: str, path: str, listener: tuple[str, int] = LISTENER
) -> tuple[int, dict[str, str], str]:
    """Ask a private listener as an edge does, which names the service in the handshake."""
    name = f"{service}.internal" if listener == LISTENER else ""
    ca, settings = site.settings["nginx_ca_certificate"], site.settings
    pair = client_pair("edge", settings["tls_ca_certificate"], settings["tls_ca_key"])
    words = ["python3", "-c", CLIENT, listener[0], str(listener[1]), name, path, site.name, ca, "".join(pair)]
    with host.sudo():
        status, headers, body = json.loads(host.check_output(shlex.join(words)))
    return status, headers, body


def test_the_private_listener_chooses_by_the_name_in_the_handshake(host: Host, edge: StubEdge) -> None:
    for service, name in {"api": "one", "shop": "two", "stranger": "one"}.items():
        status, headers, body = ask_listener(host, edge.site, service, "/x")
        assert (status, headers["X-Served-By"], body) == (200, name, "/x")
    # A Prometheus on the same host names the service in the path.
    for path, name, received in (
        ("/shop/metrics", "two", "/shop/metrics"),
        ("/api/metrics", "one", "/metrics"),
        ("/metrics", "one", "/metrics"),
    ):
        status, headers, body = ask_listener(host, edge.site, "", path, LOCAL)
        assert (status, headers["X-Served-By"], body) == (200, name, received)


def test_maintenance_is_that_of_one_service(host: Host, edge: StubEdge) -> None:
    directory = f"{edge.directory}/maintenance/shop"
    host.check_output(
        f"mkdir -p {directory} && echo '{{}}' > {directory}/problem.json && touch {directory}/on"
    )
    answers = {path: edge.site.request(path) for path in ("/shop/x", "/shop/static/app.js", "/x")}
    host.check_output(f"rm -r {directory}")
    assert {path: answer.status for path, answer in answers.items()} == {
        "/shop/x": 503,
        "/shop/static/app.js": 503,
        "/x": 200,
    }
    assert json.loads(answers["/shop/x"].body) == {}


def test_a_host_certificate_carries_the_names_of_its_services(host: Host, site: Site) -> None:
    certificate = read(host, site.settings["nginx_host_certificate"])
    names = host.check_output(f"echo '{certificate}' | openssl x509 -noout -ext subjectAltName")
    for service in site.settings["nginx_sites"]:
        assert f"DNS:{service}.internal" in names


def test_types_of_pages_are_compressed(edge: StubEdge) -> None:
    for name in ("text%2Fjavascript", "text%2Fcss", "application%2Fmanifest%2Bjson", "image%2Fsvg%2Bxml"):
        answer = edge.site.request(f"/typed?type={name}", headers={"Accept-Encoding": "gzip"})
        assert answer.headers["Content-Encoding"] == "gzip", name
