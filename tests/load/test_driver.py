"""The load driver counts every kind of failure of a server that fails on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.lab import ROOT
from tests.load.driver import Driver, Plan, Request
from tests.load.report import OK, Report, percentile

Serve = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]
REQUESTS = {
    "r": Request("/read", expect="hello"),
    "w": Request("/write", "POST", body="name={key}", status=201, expect="{key}", timeout=0.5),
    "s": Request("/slow", expect="hello"),
}


def answer(status: int, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}", "X-Release: one", *headers, "", body]
    return "\r\n".join(lines).encode()


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """Run a server whose responses come from `serve`, which returns whether to keep the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError):
            while await serve((await reader.readuntil(b"\r\n\r\n")).decode(), reader, writer):
                pass
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def drive(serve: Serve, mix: str, *, rate: float, seconds: float, always: str = "") -> Report:
    async def run() -> Report:
        async with serving(serve) as url:
            return await Driver(Plan(url, rate, mix, REQUESTS, always, seconds=seconds)).run()

    return asyncio.run(run())


async def read_body(head: str, reader: asyncio.StreamReader) -> str:
    length = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("Content-Length"))
    return (await reader.readexactly(int(length))).decode()


def test_every_kind_of_failure_is_counted() -> None:
    sent_by_turn: Counter[int] = Counter()

    async def serve(_: str, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        turn = sent_by_turn.total() % 7
        sent_by_turn[turn] += 1
        if turn == 1:  # an error
            writer.write(answer(502, "hello"))
        elif turn == 2:  # the response to another request
            writer.write(answer(200, "other"))
        elif turn == 3:  # closed in the middle of the response
            writer.write(answer(200, "hello")[:-2])
            return False
        elif turn == 4:  # closed without a response
            return False
        elif turn == 5:  # reset
            writer.transport.abort()
            return False
        elif turn == 6:  # not HTTP
            writer.write(b"rubbish\r\n\r\n")
            return False
        else:
            writer.write(answer(200, "hello"))
        return True

    report = drive(serve, "rR", rate=100, seconds=1.4)
    outcomes = Counter(sample.outcome for sample in report.samples)
    assert outcomes == {
        OK: sent_by_turn[0],
        "status": sent_by_turn[1],
        "body": sent_by_turn[2] + sent_by_turn[6],
        "reset": sent_by_turn[3] + sent_by_turn[4] + sent_by_turn[5],
    }
    assert sum(outcomes.values()) == sent_by_turn.total() > 130
    assert min(sent_by_turn.values()) >= 19
    assert {sample.status for sample in report.failures if sample.outcome == "status"} == {502}


def test_a_stopped_server_is_unreachable() -> None:
    async def run() -> Report:
        async with serving(lambda *_: asyncio.sleep(0, True)) as url:
            pass
        return await Driver(Plan(url, 50, "rR", REQUESTS, seconds=0.5)).run()

    outcomes = {sample.outcome for sample in asyncio.run(run()).samples}
    assert outcomes == {"unreachable"}


def test_the_driver_connects_to_an_address_under_another_name() -> None:
    names: set[str] = set()

    async def serve(head: str, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        names.update(line for line in head.splitlines() if line.startswith("Host:"))
        writer.write(answer(200, "hello"))
        return True

    async def run() -> Report:
        async with serving(serve) as url:
            named = url.replace("127.0.0.1", "shop.invalid")
            return await Driver(Plan(named, 50, "rR", REQUESTS, address="127.0.0.1", seconds=0.3)).run()

    assert not asyncio.run(run()).failures
    assert {name.split(":")[1].strip() for name in names} == {"shop.invalid"}


def test_no_response_is_a_timeout() -> None:
    async def serve(_: str, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> bool:
        await reader.read()
        return False

    report = drive(serve, "w", rate=20, seconds=0.3)
    assert {sample.outcome for sample in report.samples} == {"timeout"}
    assert all(0.5 <= sample.seconds < 1 for sample in report.samples)


def test_latency_counts_from_the_due_time() -> None:
    """A server that stalls for a second delays all requests due in that second, not only the first."""
    stalled = False

    async def serve(_: str, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        nonlocal stalled
        if not stalled:
            stalled = True
            time.sleep(1)  # noqa: ASYNC251 - stalls the driver, which shares the event loop, too
        writer.write(answer(200, "hello"))
        return True

    report = drive(serve, "r", rate=100, seconds=2)
    late = [sample for sample in report.samples if sample.seconds > 0.1]
    assert 80 <= len(late) <= 110
    assert percentile((sample.seconds for sample in report.samples), 0.99) > 0.9


def test_rate_and_idle_connections_are_kept() -> None:
    connections: set[object] = set()
    written: list[str] = []

    async def serve(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        connections.add(writer)
        if "POST" in head:
            written.append(await read_body(head, reader))
            writer.write(answer(201, written[-1]))
        else:
            writer.write(answer(200, "hello"))
        return "Connection: close" not in head

    report = drive(serve, "rwRrw", rate=200, seconds=1)
    assert not report.failures
    assert 195 <= len(report.samples) <= 201
    fresh = sum(sample.fresh for sample in report.samples)
    assert fresh == pytest.approx(40, abs=1)
    assert fresh < len(connections) <= fresh + 5
    assert {sample.release for sample in report.samples} == {"one"}
    sent = {f"name={sample.key}" for sample in report.samples if sample.kind == "w"}
    assert len(written) == len(sent)
    assert set(written) == sent


def test_requests_in_always_repeat_in_parallel() -> None:
    async def serve(head: str, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if "/slow" in head:
            await asyncio.sleep(0.2)
        writer.write(answer(200, "hello"))
        return True

    report = drive(serve, "r", rate=50, seconds=1, always="s")
    slow = [sample for sample in report.samples if sample.kind == "s"]
    assert len(slow) == 5
    assert not report.failures


def test_chunked_responses_are_read() -> None:
    async def serve(_: str, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
        )
        return True

    assert not drive(serve, "rR", rate=50, seconds=0.3).failures


def test_sigterm_writes_the_result(tmp_path: Path) -> None:
    plan = {"url": "http://127.0.0.1:9", "rate": 20, "mix": "r", "requests": {"r": {"path": "/"}}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.load.driver",
        tmp_path / "plan.json",
        tmp_path / "result.json",
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.terminate()
    assert process.wait(10) == 0
    report = Report.read(tmp_path / "result.json")
    assert {sample.outcome for sample in report.failures} == {"unreachable"}
    assert len(report.failures) == len(report.samples) > 10
    total = json.loads((tmp_path / "result.json").read_text())["total"]
    assert total["outcomes"] == {"unreachable": len(report.samples)}


def test_an_outage_ends_with_the_last_failure() -> None:
    requests = itertools.count()

    async def serve(_: str, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer(503 if next(requests) in range(20, 40) else 200, "hello"))
        return True

    report = drive(serve, "r", rate=100, seconds=0.8)
    assert 0.19 <= report.outage < 1
    # Halfway between two due times.
    middle = report.failures[0].at - 0.005
    assert not report.between(0, middle).failures
    assert report.between(middle, middle + 0.1).figures["outcomes"] == {"status": 10}
