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
    known = request.headers.get("if-none-match", "") if request.method == "GET" else ""
    if known.strip() == "*" or tag in _LISTED.findall(known):
        return Response(None, 304, sent)
    return Response(body, status, sent, "application/json")


def expectation(request: Request) -> Callable[[bytes], None]:
    """Return the check of If-Match, to be called with what is stored, under its lock."""
    wanted = request.headers.get("if-match", "*").strip()

    def check(stored: bytes) -> None:
        if wanted != "*" and etag(stored) not in _LISTED.findall(wanted):
            raise HTTPException(412, "It has been changed since you read it: read it again.")

    return check
