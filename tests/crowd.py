"""A crowd of slow and idle connections from one client.

Usage: python -m tests.crowd KIND NUMBER ADDRESS PORT NAME

Prints one line once all connections have been tried, and keeps them open until the input ends.
"""

from __future__ import annotations

import json
import resource
import select
import selectors
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.edge import Site
from tests.lab import ROOT

# What each kind sends at once, and then a byte of it each second.
HELLO = b"\x16\x03\x01\x02\x00\x01"
KINDS = {
    "idle": (b"", b""),
    "half": (b"GET / HTTP/1.1\r\nHost: {name}\r\nX-Slow: ", b""),
    "hello": (HELLO, b""),
    "header": (b"GET / HTTP/1.1\r\nHost: {name}\r\nX-Slow: ", b"x"),
    "body": (b"POST /no/such/page HTTP/1.1\r\nHost: {name}\r\nContent-Length: 100000\r\n\r\n", b"x"),
}


@dataclass
class Crowd:
    """Connections of one kind; those that end are opened again."""

    kind: str
    number: int
    address: str
    port: int
    name: str
    refused: int = 0
    ended: int = 0
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    established: set[socket.socket] = field(default_factory=set)

    def open(self) -> None:
        """Begin a connection."""
        connection = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET)
        connection.setblocking(False)
        # A reset at the end, because thousands of ports in TIME_WAIT would hold up the next crowd.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.connect_ex((self.address, self.port))
        self.selector.register(connection, selectors.EVENT_WRITE)

    def begin(self, connection: socket.socket) -> None:
        """Send what the kind begins with."""
        tls = self.kind == "body"
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection.settimeout(10)
            self.selector.unregister(connection)
            connection = context.wrap_socket(connection, server_hostname=self.name)
        connection.sendall(KINDS[self.kind][0].replace(b"{name}", self.name.encode()))
        connection.setblocking(False)
        self.established.add(connection)
        if tls:
            self.selector.register(connection, selectors.EVENT_READ)
        else:
            self.selector.modify(connection, selectors.EVENT_READ)

    def step(self, seconds: float) -> None:
        """Handle what happens within some time."""
        for key, events in self.selector.select(seconds):
            connection: Any = key.fileobj
            try:
                if events & selectors.EVENT_WRITE:
                    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        raise ConnectionRefusedError
                    self.begin(connection)
                elif not connection.recv(4096):
                    raise ConnectionResetError
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except OSError:
                self.ended += connection in self.established
                self.refused += connection not in self.established
                self.established.discard(connection)
                if connection.fileno() in self.selector.get_map():
                    self.selector.unregister(connection)
                connection.close()

    def drip(self) -> None:
        """Send one byte more on each connection."""
        byte = KINDS[self.kind][1]
        for connection in list(self.established) if byte else []:
            try:
                connection.send(byte)
            except OSError:
                continue

    def run(self) -> None:
        """Open all connections, and keep their number until the input ends."""
        for _ in range(self.number):
            self.open()
            self.step(0)
        deadline = time.monotonic() + 20
        while len(self.established) + self.refused + self.ended < self.number and time.monotonic() < deadline:
            self.step(0.1)
        sys.stdout.write(json.dumps({"established": len(self.established), "refused": self.refused}) + "\n")
        sys.stdout.flush()
        while not select.select([sys.stdin], [], [], 0)[0]:
            for _ in range(self.number - len(self.selector.get_map())):
                self.open()
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                self.step(0.05)
            self.drip()


@contextmanager
def crowd(
    kind: str, number: int, address: str, port: int, name: str, *, enter: Sequence[str | Path] = ()
) -> Iterator[dict[str, int]]:
    """Keep a crowd during the block; `enter` is a command in front of its own."""
    arguments = [kind, str(number), address, str(port), name]
    words = [*enter, sys.executable, "-m", "tests.crowd", *arguments]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(20)


def others(site: Site, number: int) -> tuple[Counter[int], float]:
    """Return the statuses of requests on connections of their own, and the longest time of one."""
    found: Counter[int] = Counter()
    longest = 0.0
    for _ in range(number):
        begun = time.monotonic()
        found[site.request("/no/such/page").status] += 1
        longest = max(longest, time.monotonic() - begun)
    return found, longest


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kind, number, address, port, name = sys.argv[1:]
    Crowd(kind, int(number), address, int(port), name).run()
