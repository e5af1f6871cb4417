"""No request reaches an application inside of another one, over HTTP/1.1 or HTTP/2."""

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest
from testinfra.host import Host

from tests.edge import Site, StubEdge, stub_edge
from tests.edge_smuggling import BODIES, HIDDEN, REFUSED, filled

pytestmark = pytest.mark.on("edge", "complete")


@pytest.fixture(scope="module")
def edge(host: Host, site: Site) -> Iterator[StubEdge]:
    with stub_edge(host, site) as edge:
        yield edge


def seen(edge: StubEdge) -> list[str]:
    """Return the targets that the application got since the last call."""
    targets: list[str] = json.loads(edge.site.request("/seen").body)
    return targets


@pytest.mark.parametrize("name", REFUSED)
def test_an_ambiguous_request_is_refused_and_passes_nothing_on(edge: StubEdge, name: str) -> None:
    answer = edge.site.send(filled(REFUSED[name], edge.site.name))
    assert 400 <= answer.status <= 505
    answer.assert_problem()
    assert seen(edge) == []


@pytest.mark.parametrize("name", BODIES)
def test_a_body_stays_a_body(edge: StubEdge, name: str) -> None:
    request = filled(BODIES[name], edge.site.name) + filled(
        b"GET /after HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n", edge.site.name
    )
    with edge.site.connect() as connection:
        connection.sendall(request)
        answers = b""
        while received := connection.recv(1 << 16):
            answers += received
    assert answers.count(b"HTTP/1.1 200 ") == 2
    assert filled(HIDDEN, edge.site.name) in answers
    assert seen(edge) == ["/body", "/after"]


def test_fields_that_a_client_calls_hop_by_hop_are_set_all_the_same(edge: StubEdge) -> None:
    answer = edge.site.request("/headers", headers={"Connection": "close, X-Forwarded-For, X-Real-IP"})
    received = {name.lower() for name, _ in json.loads(answer.body)}
    assert {"x-forwarded-for", "x-real-ip"} <= received
    assert seen(edge) == ["/headers"]


# ---- HTTP/2: lengths and line ends are data there, and become syntax towards the application ----


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def fields(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Return fields as literals without compression (RFC 7541, 6.2.2)."""
    return b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)


def receive(connection: socket.socket, size: int) -> bytes:
    """Return the next bytes of a connection."""
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise EOFError
        data += more
    return data


def is_last(connection: socket.socket) -> bool:
    """Read a frame and return whether it ends the request's stream or the connection."""
    head = receive(connection, 9)
    receive(connection, int.from_bytes(head[:3]))
    kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
    # DATA and HEADERS with END_STREAM, RST_STREAM, GOAWAY.
    return kind in (3, 7) or (stream == 1 and kind in (0, 1) and bool(flags & 1))


def send_http2(site: Site, more: list[tuple[bytes, bytes]], body: bytes, **pseudo: bytes) -> None:
    """Send one request over HTTP/2, and wait until the edge has answered or closed the connection."""
    context: ssl.SSLContext = site.context()
    context.set_alpn_protocols(["h2"])
    known = {"method": b"POST", "scheme": b"https", "authority": site.name.encode(), "path": b"/body"}
    pairs = [(b":" + name.encode(), value) for name, value in (known | pseudo).items()] + more
    with site.connect(context=context) as connection:
        settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
        connection.sendall(
            settings + frame(1, 4, 1, fields(pairs)) + frame(0, 1, 1, body) + frame(7, 0, 0, bytes(8))
        )
        with suppress(EOFError, ConnectionError, ssl.SSLError, TimeoutError):
            while not is_last(connection):
                pass


@pytest.mark.parametrize(
    ("more", "pseudo"),
    [
        ([(b"content-length", b"0")], {}),
        ([(b"content-length", b"999")], {}),
        ([(b"transfer-encoding", b"chunked")], {}),
        ([(b"x", b"1\r\ntransfer-encoding: chunked")], {}),
        ([(b"x\r\ntransfer-encoding", b"chunked")], {}),
        ([(b"connection", b"transfer-encoding")], {}),
        ([(b"Transfer-Encoding", b"chunked")], {}),
        ([], {"path": b"/hidden HTTP/1.1\r\nx: "}),
        ([], {"method": b"GET /hidden HTTP/1.1\r\nx: "}),
        ([], {"authority": b"x\r\nx: "}),
        ([], {"scheme": b"http://x/hidden?"}),
    ],
)
def test_http2_becomes_at_most_one_request(
    edge: StubEdge, more: list[tuple[bytes, bytes]], pseudo: dict[str, bytes]
) -> None:
    send_http2(edge.site, more, filled(HIDDEN, edge.site.name), **pseudo)
    assert seen(edge) in ([], ["/body"])
    assert edge.site.request("/body", "POST", body="intact").body == b"intact"
    assert seen(edge) == ["/body"]


def test_the_client_of_http2_can_send_a_sound_request(edge: StubEdge) -> None:
    send_http2(edge.site, [], b"x")
    assert seen(edge) == ["/body"]
