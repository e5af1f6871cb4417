"""Ask the service as its clients do, through an edge and TLS or on its socket, whether a release works."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import socket
import ssl
import time
from typing import Any

SWITCH_SECONDS = 5


class OtherReleaseError(Exception):
    """Another release answered."""


@functools.cache
def trusting(authority: str) -> ssl.SSLContext:
    """Return what checks an edge's certificate; every public authority is read for it."""
    context = ssl.create_default_context(cadata=authority)
    context.load_default_certs()
    return context


def connect(place: str, name: str, authority: str) -> socket.socket:
    """Connect to an edge, or to a socket of this host, which has no name."""
    if not name:
        local = socket.socket(socket.AF_UNIX)
        local.settimeout(10)
        local.connect(place)
        return local
    context = trusting(authority)
    return context.wrap_socket(socket.create_connection((place, 443), timeout=10), server_hostname=name)


def ask(place: str, name: str, release: str, token: str, check: dict[str, Any]) -> None:
    """Send every request to one place; raise ValueError with what was wrong."""
    location = ""
    for wanted in check["requests"]:
        method, path = wanted.get("method", "GET"), wanted["path"].replace("{location}", location)
        connection = http.client.HTTPConnection(name or "localhost")
        connection.sock = connect(place, name, check.get("authority", ""))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = None
        if "body" in wanted:
            body, headers["Content-Type"] = json.dumps(wanted["body"]), "application/json"
        # It may have answered, and hung up, before it was told all; its answer counts.
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
        if not found:
            raise ValueError(f"{method} {path} was answered by no release")
        location = answer.getheader("Location", location)


def fault(place: str, name: str, release: str, token: str, check: dict[str, Any]) -> str:
    """Return what is wrong, asking again while the old release has not let go of the socket yet."""
    deadline = time.monotonic() + SWITCH_SECONDS
    while True:
        try:
            ask(place, name, release, token, check)
        except OtherReleaseError as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(0.1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return str(error)
        else:
            return ""
