"""An application behind a StubEdge; the path of a request says what it does.

Usage: python3 edge_stub.py SOCKET NAME
"""

import asyncio
import json
import os
import sys
from urllib.parse import parse_qs, urlsplit

count = 0
# The targets of the requests so far; a request for /seen returns and forgets them.
seen: list[str] = []


async def respond(writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str]) -> None:
    """Send a whole response."""
    head = {"Content-Length": str(len(body)), "X-Served-By": sys.argv[2], **headers}
    lines = [f"HTTP/1.1 {status} Stub", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    writer.write("\r\n".join(lines).encode() + body)
    await writer.drain()


async def stream(writer: asyncio.StreamWriter, query: dict[str, str]) -> None:
    """Send five events, with a pause between two."""
    head = ["HTTP/1.1 200 OK", f"Content-Type: {query.get('type', 'text/event-stream')}"]
    head += ["X-Accel-Buffering: no"] if "accel" in query else []
    head += ["Connection: close"] if "close" in query else ["Transfer-Encoding: chunked"]
    writer.write("\r\n".join([*head, "", ""]).encode())
    for number in range(5):
        event = f"data: {number}\n\n".encode()
        writer.write(event if "close" in query else b"%x\r\n%b\r\n" % (len(event), event))
        await writer.drain()
        await asyncio.sleep(float(query.get("pause", "0.3")))
    writer.write(b"" if "close" in query else b"0\r\n\r\n")


async def answer(
    writer: asyncio.StreamWriter, target: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    """Do what the path says."""
    global count
    count += 1
    seen.append(target)
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    match parts.path.split("/")[1:]:
        case ["status", status]:
            await respond(writer, int(status), b"the application's own", {"Retry-After": "7"})
        case ["headers"]:
            await respond(writer, 200, json.dumps(headers).encode(), {})
        case ["body"]:
            await respond(writer, 200, body, {})
        case ["seen"]:
            await respond(writer, 200, json.dumps(seen[:-1]).encode(), {})
            seen.clear()
        case ["events"]:
            await stream(writer, query)
        case ["large"]:
            await respond(writer, 200, b"", {"X-Large": "x" * int(query["bytes"])})
        case ["typed"]:
            await respond(writer, 200, b"x" * 1000, {"Content-Type": query["type"]})
        case ["counted", *_]:
            await respond(
                writer, 200, str(count).encode(), {"Vary": query["vary"]} if "vary" in query else {}
            )
        case ["slow"]:
            await asyncio.sleep(float(query["seconds"]))
            await respond(writer, 200, b"", {})
        case _:
            await respond(writer, 200, target.encode("latin-1"), {})


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of a connection."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            first, *lines = head.decode("latin-1").rstrip().split("\r\n")
            pairs = [line.partition(": ") for line in lines]
            headers = [(name, value) for name, _, value in pairs]
            lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
            body = await reader.readexactly(lengths[0] if lengths else 0)
            await answer(writer, first.split(" ")[1], headers, body)
            if "close" in first:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


async def main() -> None:
    """Serve until the process is stopped."""
    os.umask(0)  # Nginx' account may connect.
    server = await asyncio.start_unix_server(serve, sys.argv[1], limit=1 << 20)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
