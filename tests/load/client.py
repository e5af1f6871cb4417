"""HTTP/1.1 on asyncio streams, as strict as a measurement needs: nothing is retried, nothing is forgiven."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

MOST_BYTES = 1 << 20


class ResetError(Exception):
    """The server closed or cut the connection before the answer was whole."""


class UnreachableError(Exception):
    """No connection came about."""


class MalformedError(Exception):
    """The answer is not HTTP."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

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
    async def open(cls, url: str, context: ssl.SSLContext | None) -> Connection:
        """Connect to where a URL points."""
        parts = urlsplit(url)
        port = parts.port or (443 if context else 80)
        try:
            reader, writer = await asyncio.open_connection(
                parts.hostname, port, ssl=context, limit=MOST_BYTES
            )
        except (OSError, asyncio.IncompleteReadError) as error:
            raise UnreachableError(repr(error)) from None
        return cls(reader, writer, parts.netloc)

    async def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        """Send a request and return its whole answer."""
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
        """Whether the server left it open after a whole answer."""
        return self._reusable and not self._reader.at_eof()

    def close(self) -> None:
        """Let go; whether the server says goodbye does not matter any more."""
        self._writer.close()
