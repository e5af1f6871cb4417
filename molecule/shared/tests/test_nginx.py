"""The public site and the private listener; clients run outside the host where possible."""

import gzip
import json
import re
import shlex
import socket
import ssl
import uuid
from typing import Any

import pytest
from testinfra.host import Host

from tests.edge import Site, assert_headers, log_lines, read, unreachable_application
from tests.tls import client_pair


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


# ---- Headers on every response ----


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
    unit = f"{next(iter(site.settings['nginx_sites']))}@*"
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


@pytest.mark.on("app")
def test_private_listener_serves_metrics(
    host: Host, variables: dict[str, Any], listeners: list[tuple[str, int]]
) -> None:
    certificate, key = client_pair("monitoring", variables["tls_ca_certificate"], variables["tls_ca_key"])
    script = (
        "import ssl,sys,urllib.request as r\n"
        "open('/run/client.pem', 'w').write(sys.argv[3])\n"
        "c=ssl.create_default_context(cafile=sys.argv[2]); c.load_cert_chain('/run/client.pem')\n"
        "print(r.urlopen(sys.argv[1], context=c if sys.argv[1][:5]=='https' else None).status)"
    )
    for address, port in listeners:
        url = f"{'http' if is_loopback(address) else 'https'}://{address}:{port}/metrics"
        words = ["python3", "-c", script, url, variables["nginx_ca_certificate"], certificate + key]
        with host.sudo():
            assert host.check_output(shlex.join(words)) == "200"
    with host.sudo():
        host.check_output("rm /run/client.pem")
