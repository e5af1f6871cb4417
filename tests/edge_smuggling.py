"""Requests that a proxy and an application might delimit differently, or read as another request."""

from __future__ import annotations

# What an attacker hides in the body, or behind the end of another request.
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: {name}\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"


def post(*fields: bytes, body: bytes = HIDDEN, line: bytes = b"POST /body HTTP/1.1") -> bytes:
    """Return a request; {length} in a field is the length of the hidden request."""
    return b"\r\n".join([line, b"Host: {name}", *fields, b"", body])


def chunked(head: bytes, tail: bytes = b"\r\n0\r\n\r\n", *fields: bytes) -> bytes:
    """Return a request with one chunk; head is the line of its size."""
    return post(CHUNKED, *fields, body=head + HIDDEN + tail)


# The edge answers with an error, and passes nothing on.
REFUSED = {
    "both lengths": post(b"Content-Length: {length}", CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "both lengths, the other order": post(CHUNKED, b"Content-Length: 4", body=b"5c\r\n" + HIDDEN),
    "two lengths": post(b"Content-Length: 0", b"Content-Length: {length}"),
    "two equal lengths": post(b"Content-Length: {length}", b"Content-Length: {length}"),
    "a list of lengths": post(b"Content-Length: 0, {length}"),
    "a length with a sign": post(b"Content-Length: +{length}"),
    "a negative length": post(b"Content-Length: -1"),
    "a hexadecimal length": post(b"Content-Length: 0x10"),
    "a length beyond 64 bits": post(b"Content-Length: 18446744073709551617"),
    "a length with a space before the colon": post(b"Content-Length : {length}"),
    "two codings": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + HIDDEN),
    "the coding twice": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "an unknown coding": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + HIDDEN),
    "a coding in quotes": post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n" + HIDDEN),
    "a coding after a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + HIDDEN),
    "a coding with a space before the colon": post(
        b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + HIDDEN
    ),
    "a coding on a folded line": post(b"X: 1\r\n Transfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN),
    "a coding in HTTP/1.0": post(CHUNKED, body=b"0\r\n\r\n" + HIDDEN, line=b"POST /body HTTP/1.0"),
    "a chunk beyond 64 bits": chunked(b"10000000000000000\r\n"),
    "a chunk with a sign": chunked(b"+26\r\n"),
    "a hexadecimal prefix of a chunk": chunked(b"0x26\r\n"),
    "a chunk without an end": chunked(b"5\r\n"),
    "a null byte in a field": post(b"X: a\x00b", b"Content-Length: 0", body=b""),
    "a carriage return in a name": post(b"X\rY: 1", b"Content-Length: 0", body=b""),
    "two hosts": post(b"Host: other.invalid", b"Content-Length: 0", body=b""),
    "a host with a path": b"GET /body HTTP/1.1\r\nHost: {name}/x\r\n\r\n",
    "a host with a space": b"GET /body HTTP/1.1\r\nHost: {name} other.invalid\r\n\r\n",
    "a request line with a fourth word": b"GET /body HTTP/1.1 x\r\nHost: {name}\r\n\r\n",
    "a request line with a tab": b"GET /body\tHTTP/1.1\r\nHost: {name}\r\n\r\n",
    "a method with a line feed": b"GE\nT /body HTTP/1.1\r\nHost: {name}\r\n\r\n",
    "another service's host in the target": b"GET http://other.invalid/body HTTP/1.1\r\nHost: {name}\r\n\r\n",
    "another scheme": b"GET ftp://other.invalid/body HTTP/1.1\r\nHost: {name}\r\n\r\n",
    "CONNECT": b"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}\r\n\r\n" + HIDDEN,
}
# The application gets one request with the hidden one as its body.
BODIES = {
    "a length": post(b"Content-Length: {length}"),
    "a chunk": chunked(b"{hexadecimal}\r\n"),
    "a chunk with an extension": chunked(b"{hexadecimal};x=y\r\n"),
    "trailers": chunked(b"{hexadecimal}\r\n", b"\r\n0\r\nContent-Length: 5\r\nX-Real-IP: 192.0.2.1\r\n\r\n"),
    "a body of a GET": post(b"Content-Length: {length}", line=b"GET /body HTTP/1.1"),
    "a name with an underscore": post(b"Content-Length: {length}", b"Transfer_Encoding: chunked"),
    "an upgrade": post(b"Content-Length: {length}", b"Connection: upgrade", b"Upgrade: websocket"),
    "an expectation": post(b"Content-Length: {length}", b"Expect: x"),
    "line feeds only": post(b"Content-Length: {length}").replace(b"\r\n", b"\n", 4),
}


def filled(raw: bytes, name: str) -> bytes:
    """Return a request with the name of the site and the length of the hidden request in it."""
    length = len(HIDDEN.replace(b"{name}", name.encode()))
    values = {b"{length}": b"%d" % length, b"{hexadecimal}": b"%x" % length, b"{name}": name.encode()}
    for placeholder, value in values.items():
        raw = raw.replace(placeholder, value)
    return raw
