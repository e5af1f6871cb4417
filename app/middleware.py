"""Middleware: request ids, access log, metrics, limits, and the handler of last resort."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import UnavailableError, problem
from app.health import Shutdown
from app.logging import request_ids
from app.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
ADDRESS = re.compile(rb"[0-9a-fA-F.:]{2,45}")
LOCAL_PEERS = frozenset({"127.0.0.1", "::1", ""})
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
QUIET_ROUTES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
# Set here for a service without a proxy in front; the edge keeps these values.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
CLIENT_CLOSED_REQUEST = 499
NOT_ACCEPTED = 403  # the server's answer to a WebSocket that no route accepts


@dataclass(slots=True)
class RequestMiddleware:
    """Outermost, pure ASGI: sets the request id, and logs and counts the request however it ends.

    The request id is the client's X-Request-ID if well-formed, else its W3C trace id, else random. Behind a
    local proxy or unix socket, the client address is the last entry of X-Forwarded-For, which the proxy
    added. A WebSocket counts as the GET that requests the upgrade.
    """

    app: ASGIApp
    metrics: Metrics
    access_log: Callable[[dict[str, Any]], None]
    shutdown: Shutdown
    max_body_bytes: int
    headers: list[tuple[bytes, bytes]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        ids, client = _identify(scope)
        method = scope.get("method", "GET")
        if method == "HEAD":
            scope["method"] = "GET"  # every GET route answers HEAD
        state = scope.setdefault("state", {})
        state |= {
            "request_id": ids["request_id"],
            "client": client,
            "begun": False,
            "max_body_bytes": self.max_body_bytes,  # a route may lower it
        }
        token = request_ids.set(ids)
        status = received = sent = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > (most := state["max_body_bytes"]):  # counted: Content-Length may be wrong
                raise HTTPException(413, f"The request body exceeds {most} bytes.")
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                state["begun"] = True
                added = [(b"x-request-id", ids["request_id"].encode()), *self.headers]
                if self.shutdown.begun:
                    added.append((b"connection", b"close"))
                message["headers"] = [*message["headers"], *added]
            elif message["type"] == "websocket.accept":
                status = 101
            elif method == "HEAD":
                message["body"] = b""
            else:
                sent += len(message.get("body", b""))
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, limited_receive, counted_send)
        finally:
            seconds = time.perf_counter() - started
            status = status or (CLIENT_CLOSED_REQUEST if scope["type"] == "http" else NOT_ACCEPTED)
            route = _route(scope)
            self.metrics.in_flight.dec()
            self.metrics.observe_request(method, route, status, seconds, received, sent)
            if route not in QUIET_ROUTES or status >= 400:
                self.access_log(
                    {
                        "time": datetime.now(UTC),
                        "level": "INFO",
                        "logger": "app.access",
                        "message": "request",
                        "request_id": ids["request_id"],
                        "trace_id": ids.get("trace_id"),
                        "method": method,
                        "path": scope["path"],
                        "route": route,
                        "status": status,
                        "duration_ms": round(seconds * 1000, 3),
                        "bytes": sent,
                        "client": client,
                        "user": state.get("user"),
                    }
                )
            request_ids.reset(token)


class ProblemCORSMiddleware(CORSMiddleware):
    """Refuses a CORS preflight with a problem document."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        error = HTTPException(400, f"{bytes(answer.body).decode()}.", {"Vary": "Origin"})
        return problem(error, request_ids.get()["request_id"])


@dataclass(slots=True)
class GuardMiddleware:
    """Innermost, pure ASGI: request timeout and unexpected errors; CORS middleware sees its responses.

    Refuses control characters in paths: `$` in a route's pattern matches before a line feed, too.
    """

    app: ASGIApp
    timeout: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if not path.isprintable() and CONTROL_CHARACTERS.search(path):
            if scope["type"] == "http":
                error = HTTPException(400, "The path contains a control character.")
                await problem(error, scope["state"]["request_id"])(scope, receive, send)
            else:
                await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout) as deadline:
                await self.app(scope, receive, send)
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                logger.warning("Request timed out", extra={"route": _route(scope)})
                shown: HTTPException = UnavailableError(
                    "The request took too long and was cancelled. Retry it.", retry_after=5
                )
            else:
                logger.exception("Unhandled error", extra={"route": _route(scope)})
                shown = HTTPException(
                    500, "An unexpected error occurred. The log has the cause under the request id."
                )
            if scope["state"]["begun"]:
                raise  # the response has started: the server must cut the connection
            await problem(shown, scope["state"]["request_id"])(scope, receive, send)


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")


def _identify(scope: Scope) -> tuple[dict[str, str], str]:
    """Return the request's ids and client address; malformed header values are ignored."""
    headers = dict(scope["headers"])
    client = scope["client"][0] if scope.get("client") else ""
    if client in LOCAL_PEERS and (header := headers.get(b"x-forwarded-for")):
        header = header.rpartition(b",")[2].strip()
        client = header.decode() if ADDRESS.fullmatch(header) else client
    request_id = trace_id = None
    if (header := headers.get(b"traceparent")) and (match := TRACEPARENT.fullmatch(header)):
        request_id = trace_id = match[1].decode()
    if (header := headers.get(b"x-request-id")) and REQUEST_ID.fullmatch(header):
        request_id = header.decode()
    ids = {"request_id": request_id or uuid4().hex}
    return (ids | {"trace_id": trace_id} if trace_id else ids), client
