"""Headless Chromium: load pages as a person's browser does, and keep what its console shows."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The first one is a Debian package of its own, with the fewest dependencies.
PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")


class Browser:
    """One tab, driven by the DevTools protocol over a pipe: JSON objects that a NUL byte ends.

    `script` is what each script of a content delivery network contains.
    """

    def __init__(self, commands: int, events: int, script: str) -> None:
        self._commands, self._events, self._script = commands, events, script
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self._rest = b""
        self.faults: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Fetch.enable", patterns=[{"urlPattern": "https://cdn.*"}])

    def open(self, url: str, ready: str, seconds: float = 20) -> None:
        """Load a page and wait until the JavaScript expression `ready` is true in it."""
        self.faults.clear()
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        self.wait_for(f"document.readyState === 'complete' && ({ready})", seconds)

    def wait_for(self, expression: str, seconds: float = 20) -> None:
        """Wait until a JavaScript expression is true; the failure has the console's faults."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"not true after {seconds} s: {expression}; {self.faults}"
            time.sleep(0.1)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what the page reports meanwhile goes into `faults`."""
        number = self._send(method, **parameters)
        while (answer := self._read()).get("id") != number:
            self._note(answer.get("method", ""), answer.get("params", {}))
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _send(self, method: str, **parameters: Any) -> int:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        return number

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._events], [], [], 30)[0], "the browser does not answer"
            received = os.read(self._events, 1 << 16)
            assert received, "the browser has ended"
            self._rest += received
        message, _, self._rest = self._rest.partition(b"\0")
        content: dict[str, Any] = json.loads(message)
        return content

    def _note(self, event: str, parameters: Mapping[str, Any]) -> None:
        if event == "Fetch.requestPaused":
            script = parameters["resourceType"] == "Script"
            self._send(
                "Fetch.fulfillRequest",
                requestId=parameters["requestId"],
                responseCode=200,
                responseHeaders=[
                    {"name": "Content-Type", "value": "text/javascript" if script else "text/css"}
                ],
                body=b64encode(self._script.encode()).decode() if script else "",
            )
        elif event == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.faults.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            values = (argument.get("value", argument.get("description")) for argument in parameters["args"])
            self.faults.append(" ".join(map(str, values)))
        elif event == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            entry = parameters["entry"]
            self.faults.append(f"{entry['text']} {entry.get('url', '')}".strip())


@contextmanager
def browser(scratch: Path, addresses: Mapping[str, str], script: str = "") -> Iterator[Browser]:
    """Run a browser that resolves these host names and no other.

    It trusts every certificate, which other tests check. `script` stands for each script of a content
    delivery network.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert program, f"install one of {', '.join(PROGRAMS)}"
    theirs, commands = os.pipe()
    events, ours = os.pipe()
    rules = [*(f"MAP {name} {address}" for name, address in addresses.items()), "MAP * ~NOTFOUND"]
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--ignore-certificate-errors",
        f"--user-data-dir={scratch}",
        f"--host-resolver-rules={', '.join(rules)}",
        "--remote-debugging-pipe",
    ]
    # The protocol has the file descriptors 3 and 4.
    command = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash", program, *options]
    log = (scratch / "browser.log").open("w")
    with log, subprocess.Popen(command, pass_fds=(theirs, ours), stderr=log, stdout=log) as process:
        os.close(theirs)
        os.close(ours)
        try:
            yield Browser(commands, events, script)
        finally:
            process.terminate()
            process.wait(20)
            os.close(commands)
            os.close(events)
