"""Around every request: its id, access line, metrics and limits; and the last resort inside."""

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
from app.health import Drain
from app.logging import request_ids
from app.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
ADDRESS = re.compile(rb"[0-9a-fA-F.:]{2,45}")
LOCAL_PEERS = frozenset({"127.0.0.1", "::1", ""})
QUIET_ROUTES = frozenset({"/health/live", "/health/ready", "/metrics"})
# For when no proxy in front adds them; one that does leaves these alone.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
CLIENT_CLOSED_REQUEST = 499
NOT_ACCEPTED = 403  # what the server makes of a WebSocket that nobody takes


@dataclass(slots=True)
class RequestMiddleware:
    """Pure ASGI, outermost: identifies a request and accounts for its answer, however it ends.

    The id of a request is the caller's X-Request-ID if it is well-formed, else its W3C trace id, else new.
    The client's address is the last one in X-Forwarded-For, the proxy's own word, where a local proxy or a
    unix socket handed the request over. A WebSocket counts as the GET that asks for one.
    """

    app: ASGIApp
    metrics: Metrics
    access_log: Callable[[dict[str, Any]], None]
    drain: Drain
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
            scope["method"] = "GET"  # every route that answers one answers the other
        state = scope.setdefault("state", {})
        state |= {"request_id": ids["request_id"], "begun": False}
        token = request_ids.set(ids)
        status = received = sent = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:  # whatever its headers claim
                raise HTTPException(413, "The request body is larger than this service accepts.")
            return message

        async def accounted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                state["begun"] = True
                own = [(b"x-request-id", ids["request_id"].encode()), *self.headers]
                if self.drain.begun:
                    own.append((b"connection", b"close"))
                message["headers"] = [*message["headers"], *own]
            elif message["type"] == "websocket.accept":
                status = 101
            elif method == "HEAD":
                message["body"] = b""
            else:
                sent += len(message.get("body", b""))
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, limited_receive, accounted_send)
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
    """Refuses a preflight by a problem document, as everything is refused."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        told = HTTPException(400, f"{bytes(answer.body).decode()}.", {"Vary": "Origin"})
        return problem(told, request_ids.get()["request_id"])


@dataclass(slots=True)
class GuardMiddleware:
    """Pure ASGI, innermost, so that CORS headers go onto its answers too: time limit, unexpected errors."""

    app: ASGIApp
    timeout: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout) as deadline:
                await self.app(scope, receive, send)
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                logger.warning("Request timed out", extra={"route": _route(scope)})
                told: HTTPException = UnavailableError("This took too long; try again.", retry_after=5)
            else:
                logger.exception("Unhandled error", extra={"route": _route(scope)})
                told = HTTPException(500, "The service failed; the request id finds the cause in its log.")
            if scope["state"]["begun"]:
                raise  # the server must cut the connection
            await problem(told, scope["state"]["request_id"])(scope, receive, send)


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")


def _identify(scope: Scope) -> tuple[dict[str, str], str]:
    """Return the request's ids and client address; nothing that a caller wrote passes unchecked."""
    headers = dict(scope["headers"])
    client = scope["client"][0] if scope.get("client") else ""
    if client in LOCAL_PEERS and (told := headers.get(b"x-forwarded-for")):
        told = told.rpartition(b",")[2].strip()
        client = told.decode() if ADDRESS.fullmatch(told) else client
    request_id = trace_id = None
    if (told := headers.get(b"traceparent")) and (match := TRACEPARENT.fullmatch(told)):
        request_id = trace_id = match[1].decode()
    if (told := headers.get(b"x-request-id")) and REQUEST_ID.fullmatch(told):
        request_id = told.decode()
    ids = {"request_id": request_id or uuid4().hex}
    return (ids | {"trace_id": trace_id} if trace_id else ids), client
