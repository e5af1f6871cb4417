"""The roles serve and release another application without dropped requests."""

from __future__ import annotations

import http.client
import json
import math
import socket
import ssl
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.release.fleet import Fleet

# The example of RFC 6455.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def get(beacon: Fleet, path: str) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=beacon.ca)
    link = http.client.HTTPSConnection(beacon.url.removeprefix("https://"), context=context, timeout=5)
    with closing(link):
        link.request("GET", path)
        answer = link.getresponse()
        return answer.status, answer.read().decode()


@contextmanager
def websocket(beacon: Fleet, path: str) -> Iterator[ssl.SSLSocket]:
    host = beacon.url.removeprefix("https://")
    context = ssl.create_default_context(cafile=beacon.ca)
    with (
        socket.create_connection((host, 443), 5) as raw,
        context.wrap_socket(raw, server_hostname=host) as link,
    ):
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket"]
        lines += [f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13", "", ""]
        link.sendall("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += link.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert ACCEPT.encode() in head
        yield link


def test_it_has_its_settings_and_its_secret(beacon: Fleet) -> None:
    status, body = get(beacon, "/")
    assert status == 200
    assert json.loads(body) == {"colour": "green", "knows_its_key": True, "version": "1.0.0"}


def test_its_metrics_are_not_public(beacon: Fleet) -> None:
    assert get(beacon, "/metrics")[0] == 404
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/beacon/beacon.sock'); "
        "s.sendall(b'GET /metrics HTTP/1.0\\r\\n\\r\\n'); print(s.makefile().read())"
    )
    assert "beacon_flashes_total" in beacon.ssh("beacon1", f'python3 -c "{script}"')


def test_an_external_prometheus_reads_metrics_with_a_certificate_only(beacon: Fleet, tmp_path: Path) -> None:
    """The client is this machine, with a certificate of the environment's CA."""
    for name in ("host.crt", "host.key"):
        (tmp_path / name).write_text(beacon.ssh("beacon1", f"cat /etc/fastmetal/tls/{name}") + "\n")
    with_certificate, without_certificate = (ssl.create_default_context(cafile=beacon.ca) for _ in range(2))
    with_certificate.load_cert_chain(tmp_path / "host.crt", tmp_path / "host.key")
    host = beacon.url.removeprefix("https://")
    for port, figure in ((9100, "node_load1 "), (8443, "beacon_flashes_total ")):
        answers = []
        for context in (with_certificate, without_certificate):
            link = http.client.HTTPSConnection(host, port, context=context, timeout=5)
            with closing(link), suppress(ssl.SSLError, ConnectionError):
                link.request("GET", "/metrics")
                answers.append(link.getresponse().read().decode())
        assert figure in answers[0]
        assert not [answer for answer in answers[1:] if figure in answer]


def test_the_edge_proxies_websockets(beacon: Fleet) -> None:
    with websocket(beacon, "/echo") as link:
        # A masked text frame; a mask of zeros keeps the text.
        link.sendall(b"\x81\x85\0\0\0\0hello")
        assert link.recv(7) == b"\x81\x05hello"


def test_it_runs_without_migrations_and_database(beacon: Fleet) -> None:
    environment = beacon.ssh("beacon1", "cat /srv/beacon/current/env")
    assert 'BEACON_COLOUR="green"' in environment
    assert "DATABASE" not in environment
    assert "REDIS_URL" not in environment
    assert beacon.ssh("beacon1", "beacon-manage -c 'import beacon.web; print(beacon.web.COLOUR)'") == "green"


@pytest.mark.timeout(300)
def test_a_release_and_a_rollback_drop_no_request(beacon: Fleet, measured: list[str]) -> None:
    with beacon.load("own-app", 30) as load:
        steps = [beacon.deploy(), beacon.rollback()]
        time.sleep(2)
    for step, until in zip(steps, (steps[1].begun, time.time()), strict=True):
        after = load.report.between(step.ended, until)
        assert {sample.release for sample in after.samples} <= {step.version}
    figures = load.report.between(0, math.inf, "r").figures
    measured.append(f"own app: deploy {steps[0].seconds:.1f} s, rollback {steps[1].seconds:.1f} s, {figures}")
    assert not load.report.failures
