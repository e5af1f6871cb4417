"""Conditional requests (RFC 9110). The ETag is a hash of the body, so it needs no column.

A proxy that compresses a response marks its ETag weak. The hash is of the uncompressed bytes, so the mark
is ignored.
"""

import re
from collections.abc import Callable
from hashlib import blake2b

from fastapi import HTTPException, Request, Response

_LISTED = re.compile(r'(?:W/)?("[^"]*")')


def etag(body: bytes) -> str:
    """Return the entity tag of a body."""
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def respond(
    request: Request, body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return the body with its ETag, or 304 if the client has it already."""
    tag = etag(body)
    all_headers = {"ETag": tag, **(headers or {})}
    if request.method == "GET" and _matches(_field(request, "if-none-match"), tag):
        return Response(None, 304, all_headers)
    return Response(body, status, all_headers, "application/json")


def precondition(request: Request) -> Callable[[bytes], None]:
    """Return the check of If-Match and If-None-Match; call it with the stored body, under its row lock."""
    if_match = _field(request, "if-match", "*")
    if_none_match = _field(request, "if-none-match")

    def check(stored: bytes) -> None:
        tag = etag(stored)
        if not _matches(if_match, tag):
            raise HTTPException(412, "The resource has changed; If-Match requires that it has not.")
        if _matches(if_none_match, tag):
            raise HTTPException(412, "The resource exists; If-None-Match requires that it does not.")

    return check


def _field(request: Request, name: str, default: str = "") -> str:
    """Return a list header, joined if it came in several lines."""
    return ", ".join(request.headers.getlist(name) or [default]).strip()


def _matches(field: str, tag: str) -> bool:
    return field == "*" or tag in _LISTED.findall(field)
