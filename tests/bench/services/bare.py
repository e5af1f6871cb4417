"""A minimal ASGI application, to measure the cost of the server and Nginx alone."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

BODY = b'{"status":"nothing"}'
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
}
END = {"type": "http.response.body", "body": BODY}

Message = MutableMapping[str, Any]


async def app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Respond to all requests with the same bytes."""
    if scope["type"] == "http":
        await send(START)
        await send(END)
        return
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
