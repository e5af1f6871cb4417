"""The address of the client behind listed proxies, and HTTP/3."""

import json
import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from testinfra.host import Host

from tests.edge import Answer, Site, StubEdge, stub_edge

pytestmark = pytest.mark.on("edge", "complete")

CLIENT = "203.0.113.9"
PROXIED = 18449
# Version 2, in binary: TCP over IPv4, 203.0.113.9:1234 to 192.0.2.1:443.
BINARY = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes([203, 0, 113, 9, 192, 0, 2, 1]) + b"\x04\xd2\x01\xbb"
)


def own_address(site: Site) -> str:
    """Return the address with which this machine reaches the site."""
    with socket.create_connection((site.address, 443), timeout=5) as connection:
        address: str = connection.getsockname()[0]
    return address


def received(answer: Answer) -> dict[str, str]:
    """Return what the application got."""
    return {name.lower(): value for name, value in json.loads(answer.body)}


@pytest.fixture
def proxied(host: Host, site: Site) -> Iterator[StubEdge]:
    """An edge with a port for proxies, of which this machine is one."""
    with stub_edge(
        host,
        site,
        nginx_trusted_proxies=[own_address(site)],
        nginx_proxy_protocol_ports={"https": PROXIED},
    ) as edge:
        yield edge


@pytest.fixture
def edge(host: Host, site: Site) -> Iterator[StubEdge]:
    with stub_edge(host, site) as edge:
        yield edge


def send_behind(site: Site, preamble: bytes, port: int = PROXIED) -> Answer:
    """Send a request after a proxy's preamble."""
    plain = socket.create_connection((site.address, port), timeout=15)
    plain.sendall(preamble)
    with site.context().wrap_socket(plain, server_hostname=site.name) as connection:
        request = f"GET /headers HTTP/1.1\r\nHost: {site.name}\r\nX-Forwarded-For: 192.0.2.66\r\n\r\n"
        connection.sendall(request.encode())
        return site.receive(connection)


def test_a_listed_proxy_names_the_client_by_the_proxy_protocol(proxied: StubEdge) -> None:
    for preamble, client in {
        b"PROXY TCP4 203.0.113.9 192.0.2.1 1234 443\r\n": CLIENT,
        b"PROXY TCP6 2001:db8::9 2001:db8::1 1234 443\r\n": "2001:db8::9",
        BINARY: CLIENT,
    }.items():
        headers = received(send_behind(proxied.site, preamble))
        assert headers["x-forwarded-for"] == headers["x-real-ip"] == client
        # The port that the client connected to.
        assert headers["x-forwarded-port"] == "443"


def test_ports_of_proxies_and_of_clients_refuse_each_other(proxied: StubEdge) -> None:
    with pytest.raises(OSError, match=r"reset|EOF|WRONG_VERSION"):
        send_behind(proxied.site, b"")
    with pytest.raises(OSError, match=r"reset|EOF|WRONG_VERSION|RECORD_LAYER|record layer"):
        send_behind(proxied.site, BINARY, proxied.site.port)
    direct = received(proxied.site.request("/headers", headers={"X-Forwarded-For": CLIENT}))
    assert direct["x-forwarded-for"] == own_address(proxied.site)


def test_only_listed_proxies_name_a_client(host: Host, site: Site) -> None:
    own = own_address(site)
    ports = {"https": PROXIED}
    with stub_edge(host, site, nginx_trusted_proxies=["192.0.2.7"], nginx_proxy_protocol_ports=ports) as edge:
        assert received(send_behind(edge.site, BINARY))["x-forwarded-for"] == own
    forged = {"X-Forwarded-For": f"192.0.2.66, {CLIENT}, 192.0.2.7"}
    with stub_edge(host, site, nginx_trusted_proxies=["192.0.2.7"]) as edge:
        assert received(edge.site.request("/headers", headers=forged))["x-forwarded-for"] == own
    with stub_edge(host, site, nginx_trusted_proxies=["192.0.2.7", f"{own}/32"]) as edge:
        # What stands before the last address that is no proxy may be forged.
        assert received(edge.site.request("/headers", headers=forged))["x-forwarded-for"] == CLIENT


def test_a_dual_stack_host_serves_both_families(host: Host, site: Site, edge: StubEdge) -> None:
    """The client keeps its own address, and its network of 64 bits is what limits count."""
    (six,) = re.findall(r"inet6 (fd\S+)/64", host.check_output("ip -6 addr show dev host0 scope global"))
    for address in (site.address, six):
        answer = replace(edge.site, address=address).request("/headers")
        (own,) = {received(answer)[name] for name in ("x-forwarded-for", "x-real-ip")}
        assert (":" in own) is (":" in address)
        assert own == own_address(replace(site, address=address))


def test_http3_is_offered_and_served(host: Host, site: Site) -> None:
    if host.system_info.codename == "bookworm":
        assert site.request("/").headers["Alt-Svc"] is None
        return  # The role refuses nginx_http3 there: tests/unit/test_role_faults.py.
    with host.sudo():
        # The machine's own curl may lack HTTP/3.
        host.check_output("command -v curl || apt-get install -qq -y --no-install-recommends curl")
    with stub_edge(host, site, nginx_http3=True, nginx_private_paths=["/secret"]) as edge:
        offered = edge.site.request("/").headers["Alt-Svc"]
        assert offered == 'h3=":443"; ma=86400'
        assert edge.site.request("/", port=edge.site.plain_port).headers["Alt-Svc"] is None
        for path, status in {
            "/headers": 200,
            "/secret": 404,
            "/secret%0a": 404,
            "/x%0a": 400,
            "/x%2f..%2fsecret": 404,
        }.items():
            url = f"https://{site.name}:{edge.site.port}{path}"
            words = ["curl", "--silent", "--insecure", "--http3-only", "--path-as-is", "--include", url]
            words += ["--resolve", f"{site.name}:{edge.site.port}:{site.address}"]
            answer = host.check_output(shlex.join(words))
            head, _, body = answer.replace("\r\n", "\n").partition("\n\n")
            assert head.startswith(f"HTTP/3 {status} "), path
            assert f"alt-svc: {offered}" in head
            if status == 200:
                assert dict(json.loads(body))["X-Forwarded-Proto"] == "https"
            else:
                assert json.loads(body)["status"] == status
