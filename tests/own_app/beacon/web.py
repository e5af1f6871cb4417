"""The service: a module attribute, its own settings, health path and metrics."""

import asyncio
import os
from importlib.metadata import version
from itertools import count
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

VERSION = version("beacon")
COLOUR = os.environ["BEACON_COLOUR"]
KEY = (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "beacon_key").read_text()
flashes = count(1)
latest = 0


async def flash(_: Request) -> Response:
    """Return the setting, and whether the secret has arrived."""
    global latest
    latest = next(flashes)
    return JSONResponse(
        {"colour": COLOUR, "knows_its_key": len(KEY) == 32, "version": VERSION},
        headers={"X-Version": VERSION},
    )


async def wait(_: Request) -> Response:
    """Answer after three seconds, as a long poll does."""
    await asyncio.sleep(3)
    return PlainTextResponse("waited", headers={"X-Version": VERSION})


async def echo(socket: WebSocket) -> None:
    """Return every message."""
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        return


async def healthy(_: Request) -> Response:
    """Answer that this worker can serve."""
    return PlainTextResponse("ready")


async def metrics(_: Request) -> Response:
    """Expose this worker's own counter."""
    return PlainTextResponse(f"# TYPE beacon_flashes_total counter\nbeacon_flashes_total {latest}\n")


application = Starlette(
    routes=[
        Route("/", flash),
        Route("/wait", wait),
        Route("/healthz", healthy),
        Route("/metrics", metrics),
        WebSocketRoute("/echo", echo),
    ]
)
