"""Check a release by requests like a client's: through an edge with TLS, or on the service's own socket."""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.cookies
import json
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

SWITCH_SECONDS = 5
# How much of an answer is searched. Of other answers a message shows the start, as a stream may never end.
ANSWER_BYTES = 1_000_000


class OtherReleaseError(Exception):
    """Another release answered."""


@functools.cache
def tls_context(ca: str) -> ssl.SSLContext:
    """Return a context that trusts a CA certificate and the system's; cached, as it reads every public CA."""
    context = ssl.create_default_context(cadata=ca)
    context.load_default_certs()
    return context


def connect(address: str, name: str, ca: str) -> socket.socket:
    """Connect to an edge by its address and TLS name, or to a unix socket if the name is empty."""
    if not name:
        local = socket.socket(socket.AF_UNIX)
        local.settimeout(10)
        local.connect(address)
        return local
    context = tls_context(ca)
    return context.wrap_socket(
        socket.create_connection((address, 443), timeout=10), server_hostname=name.strip("[]")
    )


def filled(value: Any, kept: dict[str, str]) -> Any:
    """Return a value with {name} replaced by what earlier answers had; other braces stay."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda found: kept.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {name: filled(item, kept) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item, kept) for item in value]
    return value


def find(where: str, text: str, headers: http.client.HTTPMessage) -> str:
    """Return the value of an answer that an expression names; raise ValueError if there is none.

    where: a path in its JSON (`items.0.id`), `header NAME`, or `match REGEX` with one group.
    """
    kind, _, name = where.partition(" ")
    if kind == "header":
        value = headers.get(name)
    elif kind == "match":
        found = re.search(name, text)
        value = found and found[1]
    else:
        value = json.loads(text)
        for key in where.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
    if value is None:
        raise ValueError
    return value if isinstance(value, str) else json.dumps(value)


class Client:
    """Sends the requests of one check, and keeps cookies and values of their answers."""

    def __init__(self, address: str, name: str, token: str, check: dict[str, Any]) -> None:
        self.address = address
        # A name may have the service's path prefix: www.example.com/shop.
        self.name, slash, prefix = name.partition("/")
        self.prefix = slash + prefix.rstrip("/")
        self.check = check
        self.token = token
        self.kept = {"location": ""}
        self.cookies: http.cookies.SimpleCookie = http.cookies.SimpleCookie()

    def path(self, wanted: dict[str, Any]) -> str:
        """Return the path of a request; a location that an answer named has the prefix already."""
        path: str = filled(wanted["path"], self.kept)
        own = not self.prefix or path == self.prefix or path.startswith(f"{self.prefix}/")
        return path if own else self.prefix + path

    def headers(self, wanted: dict[str, Any]) -> dict[str, str]:
        """Return the headers of a request."""
        headers = {"Host": self.name or self.check.get("host") or "localhost"}
        if not self.name:
            # As the edge says it, so that the app redirects nothing to HTTPS.
            headers["X-Forwarded-Proto"] = "https"
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={item.coded_value}" for name, item in self.cookies.items())
        return headers | {
            name: str(value) for name, value in filled(wanted.get("headers") or {}, self.kept).items()
        }

    def send(self, wanted: dict[str, Any], release: str) -> None:
        """Send a request; raise ValueError if its answer is wrong."""
        method, path, headers = wanted.get("method", "GET"), self.path(wanted), self.headers(wanted)
        body = None
        if wanted.get("body") is not None:
            body, kind = json.dumps(filled(wanted["body"], self.kept)), "application/json"
        elif wanted.get("form") is not None:
            body, kind = urlencode(filled(wanted["form"], self.kept)), "application/x-www-form-urlencoded"
        if body is not None and "content-type" not in map(str.lower, headers):
            headers["Content-Type"] = kind
        connection = http.client.HTTPConnection(headers["Host"])
        connection.sock = connect(self.address, self.name, self.check.get("ca", ""))
        # The service may answer and hang up before it has read the whole body; its answer counts.
        with contextlib.suppress(BrokenPipeError):
            connection.request(method, path, body, headers)
        answer = connection.getresponse()
        searched = wanted.get("keep") or wanted.get("contains")
        text = answer.read(ANSWER_BYTES if searched else 200).decode(errors="replace")
        connection.close()
        self.judge(f"{method} {path}", wanted, answer, text, release)
        for header in answer.headers.get_all("Set-Cookie", []):
            self.cookies.load(header)
        if location := answer.getheader("Location"):
            parts = urlsplit(location)
            self.kept["location"] = parts.path + (f"?{parts.query}" if parts.query else "")
        for name, where in (wanted.get("keep") or {}).items():
            try:
                self.kept[name] = find(where, text, answer.headers)
            except (ValueError, LookupError, TypeError):
                raise ValueError(f"the answer to {method} {path} has no {where}") from None

    def judge(
        self, request: str, wanted: dict[str, Any], answer: http.client.HTTPResponse, text: str, release: str
    ) -> None:
        """Raise ValueError if an answer is not the expected one, or OtherReleaseError."""
        header = self.check["header"]
        found = answer.getheader(header, "") if header else release
        if found and found != release:
            raise OtherReleaseError(f"{request} was answered by {found}")
        expected = wanted.get("status", 200)
        if answer.status not in (expected if isinstance(expected, list) else [int(expected)]):
            raise ValueError(f"{request} was answered {answer.status}: {text[:200]}")
        if header and not found:
            raise ValueError(f"{request} was answered by no release")
        if (part := wanted.get("contains")) and part not in text:
            raise ValueError(f"the answer to {request} does not contain {part!r}")


def fault(address: str, name: str, release: str, token: str, check: dict[str, Any]) -> str:
    """Return the check's failure or nothing; retry while the old release still accepts connections.

    address, name: an edge and its TLS name, or a unix socket and an empty name.
    check: `header` (which names the release), `ca` (PEM), `host` (on the socket), `requests`
        (as the role's app_check_requests).
    """
    deadline = time.monotonic() + SWITCH_SECONDS
    while True:
        client = Client(address, name, token, check)
        try:
            for wanted in check["requests"]:
                client.send(wanted, release)
        except OtherReleaseError as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(0.1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return str(error)
        else:
            return ""


def fault_of_edges(
    edges: dict[str, str], release: str, token: str, token_file: str, check: dict[str, Any]
) -> str:
    """Return the failure of the first edge that fails the check, or nothing.

    edges: The TLS name of each address.
    """
    if token_file:
        try:
            token = Path(token_file).read_text()
        except OSError as error:
            return f"there is no token: {error}"
    for edge, name in edges.items():
        if wrong := fault(edge, name, release, token, check):
            return f"{edge}: {wrong}"
    return ""
