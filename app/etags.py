"""Conditional requests: an ETag is a hash of the answer's bytes, so it needs no column and cannot lie.

A proxy that compresses an answer marks its ETag weak; since ours names the bytes from before any coding,
the mark says nothing about them and is ignored.
"""

import re
from collections.abc import Callable
from hashlib import blake2b

from fastapi import HTTPException, Request, Response

_LISTED = re.compile(r'(?:W/)?("[^"]*")')


def etag(body: bytes) -> str:
    """Return the entity tag of an answer."""
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def answer(
    request: Request, body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return the body with its ETag; or 304 without it, if a reader has it already."""
    tag = etag(body)
    sent = {"ETag": tag, **(headers or {})}
    if request.method == "GET" and _lists(_field(request, "if-none-match"), tag):
        return Response(None, 304, sent)
    return Response(body, status, sent, "application/json")


def expectation(request: Request) -> Callable[[bytes], None]:
    """Return the check of If-Match and If-None-Match, to be called with what is stored, under its lock."""
    wanted = _field(request, "if-match", "*")
    unwanted = _field(request, "if-none-match")

    def check(stored: bytes) -> None:
        tag = etag(stored)
        if not _lists(wanted, tag):
            raise HTTPException(412, "It has been changed since you read it: read it again.")
        if _lists(unwanted, tag):
            raise HTTPException(412, "It is there, as If-None-Match says that it must not be.")

    return check


def _field(request: Request, name: str, default: str = "") -> str:
    """Return a header's list, which may be spread over several lines."""
    return ", ".join(request.headers.getlist(name) or [default]).strip()


def _lists(field: str, tag: str) -> bool:
    return field == "*" or tag in _LISTED.findall(field)
