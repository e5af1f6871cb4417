"""app/proof.py of a release under test: names its version, can wait, and has the fault it was built with."""

import asyncio

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import __version__

FAULT = ""
FORWARDED = b"x-forwarded-for"
VERSION = (b"x-version", __version__.encode())

if FAULT == "crashes at import":
    raise RuntimeError("This release was built to crash.")


class Proof:
    """Middleware around the whole service."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, wait or fail."""
        app = self.app
        if scope["type"] == "http":
            if scope["path"] == "/api/v1/wait":
                await asyncio.sleep(3)
                app = PlainTextResponse("waited")
            elif FAULT == "never gets ready" and scope["path"] == "/health/ready":
                app = PlainTextResponse("not yet", 503)
            elif FAULT == "loses writes" and scope["method"] == "POST":
                app = PlainTextResponse("This release was built to lose writes.", 500)
            elif FAULT == "fails behind the edge" and FORWARDED in dict(scope["headers"]):
                app = PlainTextResponse("This release was built to fail behind an edge.", 500)

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), VERSION]
            await send(message)

        await app(scope, receive, send_with_version)
