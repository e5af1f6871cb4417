"""A receiver of release events on loopback, beside one that does not answer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver(ThreadingHTTPServer):
    """A webhook, which keeps the events that it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.events: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    """Answers every event with 200."""

    server: Receiver

    def do_POST(self) -> None:
        """Keep the event."""
        self.server.events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Keep the output of the tests clean."""


@contextmanager
def receiving() -> Iterator[tuple[dict[str, dict[str, str]], list[dict[str, Any]]]]:
    """Yield the value of release_notify and the list of events that arrive; the other receiver is down."""
    with socket.create_server(("127.0.0.1", 0)) as closed, Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        down = closed.getsockname()[1]
        closed.close()
        ports = {"ci": server.server_port, "down": down}
        receivers = {name: {"url": f"http://127.0.0.1:{port}/"} for name, port in ports.items()}
        yield receivers, server.events
        server.shutdown()
