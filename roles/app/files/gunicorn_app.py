"""What an instance wraps around its ASGI app: response headers, tracebacks, and the end of WebSockets.

It lies beside gunicorn_worker.py in every instance.
"""

from __future__ import annotations

import asyncio
import sys
from contextvars import ContextVar
from typing import Any

# Codes of RFC 6455: clients of a replaced instance reconnect at once, to its successor.
GOING_AWAY, SERVICE_RESTART = 1001, 1012
REASONS = {GOING_AWAY: "The service stops.", SERVICE_RESTART: "A new release serves: reconnect."}
# Connections that are closed in one second, so that they do not all return at once.
CLOSED_PER_SECOND = 200
# How frameworks name the exception of a client that has left; it is no fault of the app.
DISCONNECTS = {"ClientDisconnect", "WebSocketDisconnect", "WebSocketDisconnected", "RequestAborted"}

# The scope of the request that runs; the tasks that it starts inherit it.
current_scope: ContextVar[Any] = ContextVar("current_scope", default=None)
# The exception that has been reported, so that Gunicorn does not report it again.
reported: ContextVar[BaseException | None] = ContextVar("reported", default=None)


class WebSocket:
    """An accepted WebSocket, which the server may close."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self.closing = False

    async def close(self, code: int) -> None:
        """Close it with a code, and wait for the client's answer."""
        self.closing = True
        await self._send({"type": "websocket.close", "code": code, "reason": REASONS[code]})

    async def send(self, message: Any) -> None:
        """Send a message of the app. No frame may follow the server's close."""
        if not self.closing:
            await self._send(message)
        elif message["type"] == "websocket.send":
            raise OSError("The server has closed the WebSocket.")


class App:
    """An ASGI app that adds headers to every response of another one and reports its exceptions.

    Event streams get X-Accel-Buffering as well, without which Nginx holds events back.
    """

    def __init__(self, app: Any, log: Any, headers: list[tuple[bytes, bytes]]) -> None:
        self.app = app
        self.log = log
        self.headers = headers
        # Calls that run; background tasks run on after the response.
        self.calls = 0
        self.sockets: set[WebSocket] = set()
        self.close_code = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a connection or the lifespan."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        serve = self._serve_socket if scope["type"] == "websocket" else self._serve_request
        token = current_scope.set(scope)
        self.calls += 1
        try:
            await serve(scope, receive, send)
        except Exception as error:
            self.report(error, scope)
            raise
        finally:
            self.calls -= 1
            current_scope.reset(token)

    async def _serve_request(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *self.headers]
                own = {name.lower(): value for name, value in headers}
                if own.get(b"content-type", b"").startswith(b"text/event-stream"):
                    headers.append((b"x-accel-buffering", b"no"))
                # A copy: an app may send the same message for every request.
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    async def _serve_socket(self, scope: Any, receive: Any, send: Any) -> None:
        socket = WebSocket(send)

        async def send_to_socket(message: Any) -> None:
            if message["type"] == "websocket.accept":
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
            await socket.send(message)
            if message["type"] == "websocket.accept":
                self.sockets.add(socket)

        try:
            await self.app(scope, receive, send_to_socket)
        finally:
            self.sockets.discard(socket)

    async def close_sockets(self, code: int) -> None:
        """Close every WebSocket with a code, evenly over the time that CLOSED_PER_SECOND allows."""
        closing = []
        for socket in list(self.sockets):
            closing.append(asyncio.create_task(socket.close(code)))
            await asyncio.sleep(1 / CLOSED_PER_SECOND)
        await asyncio.gather(*closing, return_exceptions=True)

    def report(self, error: BaseException, scope: Any, what: str = "") -> None:
        """Log an exception with its traceback and the request's id, unless the client has left."""
        reported.set(error)
        if type(error).__name__ in DISCONNECTS:
            return
        fields = {"request_id": request_id(scope)}
        method = scope.get("method", "WEBSOCKET")
        message = "Unhandled exception in %s%s %s, request %s"
        self.log.error(
            message, what, method, scope["path"], fields["request_id"], exc_info=error, extra=fields
        )

    def report_task(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log the exception of a task that a request started and did not wait for."""
        task, error = context.get("task") or context.get("future"), context.get("exception")
        scope = scope_of(task)
        if error is None or scope is None:
            loop.default_exception_handler(context)
        else:
            self.report(error, scope, "a task of ")


def request_id(scope: Any) -> str:
    """Return the id that the edge gave a request, or a dash."""
    found = (value for name, value in scope["headers"] if name.lower() == b"x-request-id")
    return str(next(found, b"-").decode("latin-1"))


def scope_of(task: Any) -> Any:
    """Return the scope of the request that started a task, or nothing."""
    if hasattr(task, "get_context"):  # Python 3.12 and newer
        return task.get_context().get(current_scope)
    return getattr(task, "scope", None)


def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
    """Return a task that remembers its scope, for Pythons that hide a task's context."""
    task: Any = asyncio.Task(coroutine, loop=loop, **options)
    task.scope = current_scope.get()
    return task


def watch_tasks(loop: asyncio.AbstractEventLoop, app: App) -> None:
    """Report the exceptions of tasks that nothing awaits."""
    loop.set_exception_handler(app.report_task)
    if sys.version_info < (3, 12):
        loop.set_task_factory(make_task)
