"""Check a release by requests like a client's: through an edge with TLS, or on the service's own socket."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

SWITCH_SECONDS = 5


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
    return context.wrap_socket(socket.create_connection((address, 443), timeout=10), server_hostname=name)


def send_requests(address: str, name: str, release: str, token: str, check: dict[str, Any]) -> None:
    """Send the requests of a check in order; raise ValueError at the first wrong answer."""
    location = ""
    for wanted in check["requests"]:
        method, path = wanted.get("method", "GET"), wanted["path"].replace("{location}", location)
        connection = http.client.HTTPConnection(name or "localhost")
        connection.sock = connect(address, name, check.get("ca", ""))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = None
        if "body" in wanted:
            body, headers["Content-Type"] = json.dumps(wanted["body"]), "application/json"
        # The service may answer and hang up before it has read the whole body; its answer counts.
        with contextlib.suppress(BrokenPipeError):
            connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read(200).decode(errors="replace")
        connection.close()
        found = answer.getheader(check["header"], "") if check["header"] else release
        if found and found != release:
            raise OtherReleaseError(f"{method} {path} was answered by {found}")
        if answer.status != int(wanted.get("status", 200)):
            raise ValueError(f"{method} {path} was answered {answer.status}: {text}")
        if check["header"] and not found:
            raise ValueError(f"{method} {path} was answered by no release")
        location = answer.getheader("Location", location)


def fault(address: str, name: str, release: str, token: str, check: dict[str, Any]) -> str:
    """Return the check's failure or nothing; retry while the old release still accepts connections.

    address, name: an edge and its TLS name, or a unix socket and an empty name.
    check: `header` (which names the release), `ca` (PEM), `requests` (method, path, status, body).
    """
    deadline = time.monotonic() + SWITCH_SECONDS
    while True:
        try:
            send_requests(address, name, release, token, check)
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
