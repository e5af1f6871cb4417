"""Errors are reported to Sentry with their request id and without secrets."""

import asyncio
import gzip
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.error_tracking import scrub_event
from app.logging import HIDDEN, Scrubber
from app.settings import Settings
from tests.app.conftest import SECRET


class Receiver:
    """A Sentry server that keeps the events it receives."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.raw = b""
        self.received = asyncio.Event()
        self._server: asyncio.Server

    async def up(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://publickey@127.0.0.1:{self._server.sockets[0].getsockname()[1]}/1"

    async def down(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        fields = dict(line.split(b": ", 1) for line in head.splitlines()[1:] if line)
        if b"content-length" in fields:
            body = await reader.readexactly(int(fields[b"content-length"]))
        else:
            body = b""
            while size := int((await reader.readline()).strip() or b"0", 16):
                body += await reader.readexactly(size)
                await reader.readline()
        body = gzip.decompress(body) if fields.get(b"content-encoding") == b"gzip" else body
        self.raw += body
        lines = body.split(b"\n")
        for header, item in zip(lines[1::2], lines[2::2], strict=False):
            if json.loads(header)["type"] == "event":
                self.events.append(json.loads(item))
                self.received.set()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    receiver = Receiver()
    dsn = await receiver.up()
    yield receiver, dsn
    await receiver.down()


async def test_an_unexpected_error_is_reported_without_secrets(
    start: Callable[..., Any], receiver: tuple[Receiver, str]
) -> None:
    server, dsn = receiver
    client = await start(SENTRY_DSN=dsn, DATABASE_PASSWORD="only-the-service-knows")

    @client.app.get("/boom")  # type: ignore[untyped-decorator]
    async def boom() -> None:
        customer = "in a local variable"
        assert customer
        raise RuntimeError(f"cannot use {SECRET} as password=hunter2 at postgresql://api:s3cr3t@db/api")

    answer = await client.get("/boom?query=private", headers={"Authorization": "Bearer private-token"})
    assert answer.status_code == 500
    assert (await client.get("/nowhere")).status_code == 404
    logging.getLogger("app.test").warning("not worth a report")
    await asyncio.wait_for(server.received.wait(), 10)
    (event,) = server.events
    assert event["tags"]["request_id"] == answer.json()["request_id"]
    assert (event["release"], event["environment"], event["level"]) == ("test", "production", "error")
    error = event["exception"]["values"][-1]
    assert error["type"] == "RuntimeError"
    assert HIDDEN in error["value"]
    assert error["stacktrace"]["frames"][-1]["function"] == "boom"
    for secret in (SECRET, "hunter2", "s3cr3t", "only-the-service", "in a local", "private", "Authorization"):
        assert secret.encode() not in server.raw, secret


async def test_pending_events_are_sent_before_the_worker_stops(
    service: Callable[..., Settings], receiver: tuple[Receiver, str]
) -> None:
    from app.main import create_app

    server, dsn = receiver
    app = create_app(service(SENTRY_DSN=dsn), lambda _: None)
    async with app.router.lifespan_context(app):
        logging.getLogger("app.test").error("the last words")
    assert server.events[0]["logentry"]["message"] == "the last words"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("nothing to see", "nothing to see"),
        ("Authorization: Bearer abc.def-1", f"Authorization: {HIDDEN}"),
        ("redis://user:word@host", f"redis://user:{HIDDEN}@host"),
        ('{"db_password": "x", "n": 1}', f'{{"{HIDDEN} "n": 1}}'),
        (f"key {SECRET}!", f"key {HIDDEN}!"),
    ],
)
def test_the_scrubber_hides_text_that_looks_secret(
    service: Callable[..., Settings], text: str, clean: str
) -> None:
    event: Any = {"message": text, "extra": {"list": [text, 1, None]}}
    assert scrub_event(Scrubber(service().secrets()), event, {}) == {
        "message": clean,
        "extra": {"list": [clean, 1, None]},
        "tags": {},
    }


def test_without_a_dsn_the_sdk_is_not_imported(migrated: dict[str, str]) -> None:
    code = "import asyncio, sys; from app.main import create_app; app = create_app()\n"
    code += "async def run():\n  async with app.router.lifespan_context(app): pass\nasyncio.run(run())\n"
    code += "sys.exit('sentry_sdk' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=migrated | {"PYTHONPATH": ":".join(sys.path)}, check=False
    )
    assert done.returncode == 0
