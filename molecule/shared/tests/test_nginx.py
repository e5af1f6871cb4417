"""The public site and the private listener; clients run outside the host where possible."""

import gzip
import http.client
import json
import re
import shlex
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pytest
from testinfra.host import Host


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def assert_problem(self) -> None:
        assert self.headers["Content-Type"] == "application/problem+json"
        assert json.loads(self.body)["status"] == self.status


@dataclass
class Site:
    """A client of the public site that trusts only the environment's CA."""

    address: str
    name: str
    ca: str
    settings: dict[str, Any] = field(repr=False)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.ca)

    def connect(self, *, port: int = 443, context: ssl.SSLContext | None = None) -> socket.socket:
        plain = socket.create_connection((self.address, port), timeout=15)
        if port == 80:
            return plain
        return (context or self.context()).wrap_socket(plain, server_hostname=self.name)

    def request(
        self,
        path: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        *,
        port: int = 443,
        host: str | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection(self.name)
        connection.sock = self.connect(port=port)
        connection.request(method, path, headers={"Host": host or self.name, **(headers or {})})
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        return answer


@lru_cache
def read(host: Host, path: str) -> str:
    with host.sudo():
        return str(host.file(path).content_string)


@pytest.fixture
def site(host: Host, variables: dict[str, Any]) -> Site:
    names = [name for name in variables["nginx_server_names"] if "*" not in name]
    return Site(
        address=variables["private_address"],
        name=names[0],
        ca=read(host, variables["nginx_ca_certificate"]),
        settings=variables,
    )


@pytest.fixture
def listeners(variables: dict[str, Any]) -> list[tuple[str, int]]:
    """Return (address, port) of the listeners for other hosts and for this host's monitoring."""
    pairs = [listen.rsplit(":", 1) for listen in variables["nginx_backend_listen"]]
    return [(address.strip("[]"), int(port)) for address, port in pairs]


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


@contextmanager
def unreachable_application(host: Host, settings: dict[str, Any]) -> Iterator[None]:
    """Hide the application's socket, so that new connections fail at once without a stop of the application.

    The reload closes the connections that nginx keeps open.
    """
    (upstream,) = settings["nginx_upstreams"]
    path = shlex.quote(upstream.removeprefix("unix:"))
    with host.sudo():
        host.check_output(f"mv {path} {path}.hidden && systemctl reload nginx.service")
    try:
        time.sleep(1)
        yield
    finally:
        with host.sudo():
            host.check_output(f"mv {path}.hidden {path}")


def log_lines(host: Host, text: str) -> list[dict[str, Any]]:
    """Return the access log's lines that contain a text; wait until nginx has flushed its buffer."""
    time.sleep(1.5)
    with host.sudo():
        found = host.run(f"grep -hF {shlex.quote(text)} /var/log/nginx/access.log").stdout
    return [json.loads(line) for line in found.splitlines()]


# ---- TLS ----


@pytest.mark.on("edge")
def test_certificate_verifies(site: Site) -> None:
    with site.connect() as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.version() == "TLSv1.3"
        assert connection.selected_alpn_protocol() is None


@pytest.mark.on("edge")
def test_certificate_is_not_for_other_names(site: Site) -> None:
    other_name = Site(site.address, "stranger.invalid", site.ca, site.settings)
    with pytest.raises(ssl.SSLCertVerificationError):
        other_name.connect()


@pytest.mark.on("edge")
def test_http2_is_negotiated(site: Site) -> None:
    context = site.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with site.connect(context=context) as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.selected_alpn_protocol() == "h2"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
@pytest.mark.on("edge")
def test_old_tls_is_refused(site: Site, version: str) -> None:
    context = site.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        site.connect(context=context)


@pytest.mark.on("edge")
def test_tls_1_2_is_served(site: Site) -> None:
    context = site.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with site.connect(context=context) as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.version() == "TLSv1.2"


@pytest.mark.on("edge")
def test_http_redirects(site: Site) -> None:
    answer = site.request("/api/v1/products?page=2", port=80)
    assert answer.status == 301
    assert answer.headers["Location"] == f"https://{site.name}/api/v1/products?page=2"


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.on("edge")
def test_unknown_host_is_refused(site: Site, port: int) -> None:
    answer = site.request("/health/live", port=port, host="stranger.invalid")
    assert answer.status == 421
    answer.assert_problem()


# ---- Headers on every response ----


def assert_headers(site: Site, answer: Answer, *, tls: bool = True) -> None:
    for name in site.settings["__nginx_own_headers"]:
        assert len(answer.headers.get_all(name) or []) == 1, f"{name} on a {answer.status}"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Strict-Transport-Security"] == (site.settings["nginx_hsts"] if tls else None)
    assert len(answer.headers.get_all("X-Request-ID") or []) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [("/health/live", 200), ("/metrics", 404), ("/no/such/page", 404), ("/no/such/page.html", 404)],
)
@pytest.mark.on("edge")
def test_headers_on_responses(site: Site, path: str, status: int) -> None:
    answer = site.request(path)
    assert answer.status == status
    assert_headers(site, answer)


@pytest.mark.on("edge")
def test_head_responds_like_get_without_the_body(site: Site) -> None:
    whole, head = site.request("/health/live"), site.request("/health/live", "HEAD")
    assert (head.status, head.body) == (whole.status, b"") == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.body))


@pytest.mark.on("edge")
def test_headers_on_redirect(site: Site) -> None:
    answer = site.request("/", port=80)
    assert answer.status == 301
    assert_headers(site, answer, tls=False)


@pytest.mark.on("edge")
def test_headers_on_misdirected_request(site: Site) -> None:
    assert_headers(site, site.request("/", host="stranger.invalid"))


@pytest.mark.on("edge_beside_app", "complete")
def test_headers_when_the_application_is_down(host: Host, site: Site) -> None:
    with unreachable_application(host, site.settings):
        answer = site.request("/health/live")
    assert answer.status == 502
    answer.assert_problem()
    assert_headers(site, answer)
    assert site.request("/health/live").status == 200


# ---- Private paths and listeners ----


@pytest.mark.on("edge")
def test_private_paths_respond_404(site: Site) -> None:
    for path in site.settings["__nginx_private_paths"]:
        disguises = [
            path,
            f"{path}/",
            f"/{path}",
            f"{path}?x=1",
            f"/%{ord(path[1]):x}{path[2:]}",
            f"/x/..{path}",
            f"/x/%2e%2e{path}",
            f"{path}/../health/live",
            f"{path}%2F..%2Fhealth/live",
        ]
        for disguise in disguises:
            answer = site.request(disguise)
            assert answer.status == 404, disguise
            answer.assert_problem()


@pytest.mark.on("nginx")
def test_nginx_has_no_other_listeners(host: Host, variables: dict[str, Any]) -> None:
    groups = set(variables["group_names"])
    with host.sudo():
        lines = host.check_output("ss -Hltnp").splitlines()
    found = {line.split()[3] for line in lines if '"nginx"' in line}
    public = {"0.0.0.0:80", "0.0.0.0:443", "[::]:80", "[::]:443"} if "edge" in groups else set()
    private = set(variables["nginx_backend_listen"]) if "app" in groups else set()
    guard = set(variables["nginx_guard_listen"])
    assert found
    assert found <= public | private | guard | {variables["nginx_status_listen"]}


@pytest.mark.on("app")
def test_private_listener_requires_a_client_certificate(
    host: Host, variables: dict[str, Any], listeners: list[tuple[str, int]]
) -> None:
    context = ssl.create_default_context(cadata=read(host, variables["nginx_ca_certificate"]))
    for address, port in listeners:
        if is_loopback(address):
            with pytest.raises(OSError, match=r"refused|timed out"):
                socket.create_connection((variables["private_address"], port), timeout=5)
            continue
        with context.wrap_socket(
            socket.create_connection((address, port), timeout=5), server_hostname=address
        ) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            first = connection.makefile().readline()
        assert first.split()[1] == "400", "a request without a certificate is served"


# ---- Limits ----


@pytest.mark.on("edge")
def test_rate_limit_responds_429(site: Site) -> None:
    zone = min(site.settings["__nginx_rate_limits"], key=lambda zone: zone["burst"])
    answers = [site.request(f"{zone['path']}{uuid.uuid4()}") for _ in range(zone["burst"] + 5)]
    refused = [answer for answer in answers if answer.status == 429]
    assert answers[0].status != 429
    assert refused
    assert int(refused[0].headers["Retry-After"]) >= 1
    refused[0].assert_problem()
    assert_headers(site, refused[0])


@pytest.mark.on("edge", "complete")
def test_connection_limit_responds_429(site: Site) -> None:
    """Requests with incomplete bodies stay in flight; one request over the limit is refused."""
    limit = site.settings["nginx_connections_per_client"]
    request = f"POST /no/such/page HTTP/1.1\r\nHost: {site.name}\r\nContent-Length: 5\r\n\r\n"
    context = site.context()
    open_requests = [site.connect(context=context) for _ in range(limit)]
    try:
        for connection in open_requests:
            connection.sendall(request.encode())
        time.sleep(0.5)
        answer = site.request("/no/such/page")
    finally:
        for connection in open_requests:
            connection.close()
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.on("edge", "complete")
def test_body_over_the_limit_responds_413(site: Site) -> None:
    number, unit = re.fullmatch(r"(\d+)([kmg]?)", site.settings["nginx_body_limit"]).groups()  # type: ignore[union-attr]
    limit = int(number) * 1024 ** " kmg".index(unit or " ")
    answer = site.request("/api/v1/products", "POST", {"Content-Length": str(limit + 1)})
    assert answer.status == 413
    answer.assert_problem()
    assert_headers(site, answer)


# ---- Responses and logs ----


@pytest.mark.on("edge", "complete")
def test_responses_are_compressed(site: Site) -> None:
    path = "/api/openapi.json"
    plain = site.request(path)
    assert plain.status == 200
    assert plain.headers["Content-Encoding"] is None
    compressed = site.request(path, headers={"Accept-Encoding": "gzip"})
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in compressed.headers["Vary"]
    # Another host may have responded; descriptions differ between Python versions.
    paths = [json.loads(body)["paths"].keys() for body in (gzip.decompress(compressed.body), plain.body)]
    assert paths[0] == paths[1]


@pytest.mark.on("edge", "complete")
def test_one_log_line_per_request(host: Host, site: Site) -> None:
    reference = uuid.uuid4().hex
    answer = site.request("/no/such/page?secret=1", headers={"X-Request-ID": reference})
    assert answer.headers["X-Request-ID"] == reference
    (line,) = log_lines(host, reference)
    assert (line["method"], line["path"], line["status"]) == ("GET", "/no/such/page", 404)
    assert line["tls"] == "TLSv1.3"
    assert float(line["upstream_duration"]) >= 0
    assert "secret" not in json.dumps(line)


@pytest.mark.on("edge", "complete")
def test_harmful_request_id_is_replaced(site: Site) -> None:
    answer = site.request("/metrics", headers={"X-Request-ID": 'a b;"c'})
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])


@pytest.mark.on("edge")
def test_client_address_cannot_be_forged(host: Host, site: Site, hosts: dict[str, Host]) -> None:
    assert not site.settings["nginx_trusted_proxies"]
    reference = uuid.uuid4().hex
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9"}
    site.request("/no/such/page", headers={"X-Request-ID": reference, **forged})
    (line,) = log_lines(host, reference)
    assert line["client"] != "203.0.113.9"
    # The service on any of the hosts may have served the request.
    unit = f"{site.settings['service_name']}@*"
    command = f"journalctl --since -1min --output cat --unit '{unit}' | grep -F {reference}"
    journal = "".join(one.run(command).stdout for one in hosts.values())
    assert json.loads(journal)["client"] == line["client"]


@pytest.mark.on("edge", "complete")
def test_health_requests_are_not_logged(host: Host, site: Site) -> None:
    reference = uuid.uuid4().hex
    assert site.request("/health/live", headers={"X-Request-ID": reference}).status == 200
    assert log_lines(host, reference) == []


@pytest.mark.on("edge", "complete")
def test_logging_continues_after_a_rotation(host: Host, site: Site) -> None:
    with host.sudo():
        host.check_output("logrotate --force /etc/logrotate.d/nginx")
    reference = uuid.uuid4().hex
    site.request("/no/such/page", headers={"X-Request-ID": reference})
    assert len(log_lines(host, reference)) == 1


# ---- Cache ----


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
    (route,) = site.settings["__nginx_cached_paths"]
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
@pytest.mark.parametrize("credential", ["Authorization", "Cookie"])
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


@pytest.mark.on("app")
def test_private_listener_serves_metrics(
    host: Host, variables: dict[str, Any], listeners: list[tuple[str, int]]
) -> None:
    script = (
        "import ssl,sys,urllib.request as r\n"
        "c=ssl.create_default_context(cafile=sys.argv[2]); c.load_cert_chain(sys.argv[3], sys.argv[4])\n"
        "print(r.urlopen(sys.argv[1], context=c if sys.argv[1][:5]=='https' else None).status)"
    )
    identity = [variables[f"nginx_{part}"] for part in ("ca_certificate", "host_certificate", "host_key")]
    for address, port in listeners:
        url = f"{'http' if is_loopback(address) else 'https'}://{address}:{port}/metrics"
        with host.sudo():
            assert host.check_output(shlex.join(["python3", "-c", script, url, *identity])) == "200"


@pytest.mark.on("nginx")
def test_unit_is_sandboxed(host: Host) -> None:
    with host.sudo():
        assert host.run("systemd-analyze security --threshold=30 nginx.service").rc == 0
