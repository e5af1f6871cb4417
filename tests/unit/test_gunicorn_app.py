"""Gunicorn as an instance runs it: tracebacks with request ids, and how WebSockets end."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.instance import Instance, Start

APP = """
import asyncio


async def answer(send, status):
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def late():
    await asyncio.sleep(0.1)
    raise LookupError("from a task")


async def background():
    await asyncio.sleep(2)
    print("background task done", flush=True)


async def application(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        if scope["path"] == "/broken":
            raise LookupError("from a websocket")
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        print("disconnected with", message["code"], flush=True)
        return
    match scope["path"]:
        case "/before":
            raise LookupError("before the response")
        case "/after":  # as Starlette does: it answers 500, and raises the exception for the server's log
            await answer(send, 500)
            raise LookupError("after the response")
        case "/task":
            asyncio.get_running_loop().create_task(late())
        case "/background":
            await answer(send, 200)
            await background()
            return
        case "/left":
            raise type("ClientDisconnect", (Exception,), {})("gone")
    await answer(send, 200)
"""


@pytest.fixture
def instance(start: Start) -> Instance:
    instance = start(APP, workers=1, graceful_timeout=10)
    instance.wait_until_ready()
    return instance


@contextmanager
def websocket(instance: Instance, path: str = "/", request_id: str = "x") -> Iterator[socket.socket]:
    """Open a WebSocket; the server has accepted it."""
    lines = (
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"X-Request-ID: {request_id}",
    )
    with instance.connect() as link:
        link.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += link.recv(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield link


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a client's frame, with a mask of zeros."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


def closed_with(link: socket.socket) -> int:
    """Return the code of the server's close, and answer it."""
    opcode, length = link.recv(2)
    payload = link.recv(length)
    assert opcode == 0x88, payload
    link.sendall(frame(8, payload[:2]))
    assert link.recv(1) == b""
    return int.from_bytes(payload[:2])


def test_an_unhandled_exception_is_logged_once_with_its_request(instance: Instance) -> None:
    for path, status, text, what in (
        ("/before", 500, "before the response", "GET"),
        ("/after", 500, "after the response", "GET"),
        ("/task", 200, "from a task", "a task of GET"),
        ("/broken", 101, "from a websocket", "WEBSOCKET"),
    ):
        request_id = f"request-of{path.replace('/', '-')}"
        if status == 101:
            with websocket(instance, path, request_id):
                log = instance.wait_for_log(f"LookupError: {text}\n")
        else:
            assert instance.get(path, **{"X-Request-ID": request_id})[0] == status
            log = instance.wait_for_log(f"LookupError: {text}\n")
        assert f"Unhandled exception in {what} {path}, request {request_id}\n" in log
    assert log.count("Traceback") == 4
    # A client that leaves is no fault of the app.
    assert instance.get("/left")[0] == 500
    assert instance.get("/")[0] == 200
    assert instance.out.read_text().count("Traceback") == 4


@pytest.mark.parametrize(("stops", "code"), [(False, 1012), (True, 1001)])
def test_websockets_are_closed_with_the_reason(instance: Instance, stops: bool, code: int) -> None:
    with websocket(instance) as first, websocket(instance) as second:
        first.sendall(frame(1, b"hello"))
        assert first.recv(100) == b"\x81\x05hello"
        if stops:
            (instance.directory / "run/shutdown").touch()
        began = time.monotonic()
        instance.process.terminate()
        assert [closed_with(first), closed_with(second)] == [code, code]
        assert time.monotonic() - began < 3
        assert instance.process.wait(30) == 0
    assert instance.out.read_text().count(f"disconnected with {code}") == 2
    assert "Traceback" not in instance.out.read_text()


def test_a_background_task_ends_before_its_instance(instance: Instance) -> None:
    assert instance.get("/background")[0] == 200
    instance.process.terminate()
    assert instance.process.wait(30) == 0
    assert "background task done" in instance.out.read_text()
