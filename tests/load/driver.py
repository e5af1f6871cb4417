"""Send requests to a service at a fixed rate and record every outcome.

`python -m tests.load.driver PLAN RESULT`: PLAN is a JSON file. RESULT is written after the plan's seconds, or
on SIGTERM or SIGINT. The load is open-loop: each request is sent when it is due, even if earlier responses
are late, and its latency counts from its due time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import ssl
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.load.client import Answer, Connection, MalformedError, ResetError, UnreachableError
from tests.load.report import OK, Report, Sample


@dataclass(frozen=True)
class Request:
    """A kind of request and its expected response; "{key}" is replaced with a unique word."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    status: int = 200
    expect: str = ""
    timeout: float = 10.0


@dataclass(frozen=True)
class Plan:
    """The requests to send: the letters of `mix` in turn, capitals on fresh connections, `rate` per second.

    Each request in `always` is repeated in parallel, as soon as its previous response is complete.
    `address` is where to connect, if no name server knows the host of `url`. Without `verify` the server may
    have a certificate of another CA.
    """

    url: str
    rate: float
    mix: str
    requests: dict[str, Request]
    always: str = ""
    address: str = ""
    ca: str = ""
    verify: bool = True
    run: str = "load"
    header: str = "x-release"
    seconds: float = 3600.0

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Return the plan in a JSON file."""
        content: dict[str, Any] = json.loads(path.read_text())
        content["requests"] = {kind: Request(**fields) for kind, fields in content["requests"].items()}
        return cls(**content)


class Driver:
    """Runs a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.samples: list[Sample] = []
        self.stopped = asyncio.Event()
        self._context = ssl.create_default_context(cafile=plan.ca) if plan.ca else None
        if self._context and not plan.verify:
            self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._idle: list[Connection] = []
        self._keys = (f"{plan.run}-{number}" for number in itertools.count())

    async def run(self) -> Report:
        """Send requests until the end or a signal, wait for those in flight, and return all samples."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stopped.set)
        loop.add_signal_handler(signal.SIGINT, self.stopped.set)
        loop.call_later(self.plan.seconds, self.stopped.set)
        letters = itertools.cycle(self.plan.mix)
        start = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for kind in self.plan.always:
                tasks.create_task(self._repeat(kind))
            for number in itertools.count():
                due = start + number / self.plan.rate
                await self._sleep_until(due)
                if self.stopped.is_set():
                    break
                letter = next(letters)
                tasks.create_task(self._send(letter.lower(), due, fresh=letter.isupper()))
        for connection in self._idle:
            connection.close()
        return Report(self.samples)

    async def _sleep_until(self, due: float) -> None:
        delay = due - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(0, delay)):
                await self.stopped.wait()
        except TimeoutError:
            return

    async def _repeat(self, kind: str) -> None:
        while not self.stopped.is_set():
            if not await self._send(kind, asyncio.get_running_loop().time(), fresh=False):
                await asyncio.sleep(0.1)

    async def _send(self, kind: str, due: float, *, fresh: bool) -> bool:
        """Send one request, record its outcome, and return whether the response was as expected."""
        loop = asyncio.get_running_loop()
        at = time.time() - (loop.time() - due)
        request, key = self.plan.requests[kind], next(self._keys)
        status, release, note = 0, "", ""
        try:
            async with asyncio.timeout(request.timeout):
                answer = await self._exchange(request, key, fresh=fresh)
        except TimeoutError:
            outcome = "timeout"
        except ResetError as error:
            outcome, note = "reset", str(error)
        except UnreachableError as error:
            outcome, note = "unreachable", str(error)
        except MalformedError as error:
            outcome, note = "body", str(error)
        else:
            status, release = answer.status, answer.headers.get(self.plan.header, "")
            if status != request.status:
                outcome, note = "status", answer.body[:300].decode(errors="replace")
            elif request.expect.replace("{key}", key) not in answer.body.decode(errors="replace"):
                outcome, note = "body", answer.body[:300].decode(errors="replace")
            else:
                outcome = OK
        seconds = loop.time() - due
        self.samples.append(Sample(at, kind, fresh, seconds, outcome, status, release, key, note))
        return outcome == OK

    async def _exchange(self, request: Request, key: str, *, fresh: bool) -> Answer:
        headers = {**request.headers, "Connection": "close"} if fresh else request.headers
        connection = None if fresh else self._take_idle()
        connection = connection or await Connection.open(self.plan.url, self._context, self.plan.address)
        try:
            body = request.body.replace("{key}", key).encode()
            answer = await connection.request(request.method, request.path, headers, body)
        finally:
            if connection.reusable and not fresh:
                self._idle.append(connection)
            else:
                connection.close()
        return answer

    def _take_idle(self) -> Connection | None:
        """Return the idle connection that was used last, or None; drop those that the server closed."""
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.close()
        return None


def main() -> None:
    """Run the plan in the first argument's file, and write the report to the second."""
    plan, result = map(Path, sys.argv[1:])
    report = asyncio.run(_drive(Plan.read(plan)))
    report.write(result)


async def _drive(plan: Plan) -> Report:
    return await Driver(plan).run()


if __name__ == "__main__":
    main()
