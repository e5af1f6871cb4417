"""An HTTP/1.1 client on asyncio streams for measurements: no retries, no tolerance of invalid responses."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_BYTES = 1 << 20


class ResetError(Exception):
    """The server closed or reset the connection before the response was complete."""


class UnreachableError(Exception):
    """The connection could not be opened."""


class MalformedError(Exception):
    """The response is not valid HTTP."""


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One connection to a server; it carries one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host
        self._reusable = True

    @classmethod
    async def open(cls, url: str, context: ssl.SSLContext | None, address: str = "") -> Connection:
        """Connect to the host and port of a URL, or to another address under the name of that host."""
        parts = urlsplit(url)
        port = parts.port or (443 if context else 80)
        name = parts.hostname if context else None
        try:
            reader, writer = await asyncio.open_connection(
                address or parts.hostname, port, ssl=context, server_hostname=name, limit=MAX_BYTES
            )
        except (OSError, asyncio.IncompleteReadError) as error:
            raise UnreachableError(repr(error)) from None
        return cls(reader, writer, parts.netloc)

    async def request(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        """Send a request and return its complete response."""
        lines = {"Host": self._host, **headers}
        if body:
            lines["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._reusable = False
        try:
            self._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            answer = await self._read(method)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise ResetError(repr(error)) from None
        except (ValueError, KeyError, IndexError, asyncio.LimitOverrunError) as error:
            raise MalformedError(repr(error)) from None
        self._reusable = answer.headers.get("connection", "").lower() != "close"
        return answer

    async def _read(self, method: str) -> Answer:
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if method == "HEAD" or status in (204, 304):
            body = b""
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            body = await self._read_chunks()
        else:
            body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(status, headers, body)

    async def _read_chunks(self) -> bytes:
        body = b""
        while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
        return body

    @property
    def reusable(self) -> bool:
        """Return whether the server kept the connection open after a complete response."""
        return self._reusable and not self._reader.at_eof()

    def close(self) -> None:
        """Close the connection without waiting for the server."""
        self._writer.close()
