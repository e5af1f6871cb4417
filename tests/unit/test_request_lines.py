"""request_lines finds the lines of one request in journals and files, and each once."""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import request_lines
from tests.unit.conftest import FakeCommand, RunModule

ID = "0123456789abcdef"
Find = Callable[..., dict[str, Any]]
HOST = socket.gethostname()


def compact(line: Any) -> str:
    """Return JSON without spaces, as the hosts' programs write it."""
    return json.dumps(line, separators=(",", ":"))


class Host:
    """A host with a journal and log files."""

    def __init__(self, folder: Path, fake_command: FakeCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "log"
        self.folder.mkdir()
        self.journal = folder / "journal"
        self.journal.touch()
        self.arguments = folder / "arguments"
        files = {"nginx": f"{self.folder}/access.log*", "postgres": f"{self.folder}/fastmetal.json*"}
        monkeypatch.setattr(request_lines, "FILES", files)
        # As journalctl: status 1 without a match.
        fake_command(
            "journalctl",
            f'echo "$@" > {self.arguments}; cat {self.journal}; [ -s {self.journal} ]',
        )

    def log(self, identifier: str, line: Any, host: str = "app1", **more: str) -> None:
        """Add an entry to the journal."""
        message = line if isinstance(line, str | list) else compact(line)
        entry = {"SYSLOG_IDENTIFIER": identifier, "MESSAGE": message, "_HOSTNAME": host, **more}
        with self.journal.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    def write(self, name: str, *lines: dict[str, Any]) -> Path:
        """Write a log file."""
        file = self.folder / name
        text = "".join(compact(line) + "\n" for line in lines).encode()
        file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return file


@pytest.fixture
def host(tmp_path: Path, fake_command: FakeCommand, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host without lines."""
    return Host(tmp_path, fake_command, monkeypatch)


def nginx(request_id: str = ID, **more: Any) -> dict[str, Any]:
    """Return a line of the edge."""
    return {"request_id": request_id, "ended": "100.5", "duration": 0.5, **more}


def app(request_id: str = ID, **more: Any) -> dict[str, Any]:
    """Return a line of the service."""
    return {"request_id": request_id, "time": "1970-01-01T00:01:41+00:00", **more}


def postgres(**more: Any) -> dict[str, Any]:
    """Return a line of Postgres."""
    return {"timestamp": "1970-01-01 00:01:41.000 UTC", "pid": 7, "message": "duration: 250.0 ms", **more}


@pytest.fixture
def find(run_module: RunModule) -> Callable[..., dict[str, Any]]:
    """Return a function that searches for ID in the logs of the services api and shop."""

    def search(**arguments: Any) -> dict[str, Any]:
        return run_module(request_lines, **{"request_id": ID, "services": ["api", "shop"], **arguments})

    return search


def found(result: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Return (host, source, start) of the lines."""
    return [(line["host"], line["source"], line["begin"]) for line in result["lines"]]


def test_searches_the_journal_and_all_files(host: Host, find: Find) -> None:
    host.log("api", app(duration_ms=500))
    host.write("access.log", nginx(), nginx("another-request"))
    host.write("access.log.2.gz", nginx(duration=1.5))
    host.write("fastmetal.json", postgres(application_name=f"api {ID}"))
    result = find()
    assert sorted(found(result)) == sorted(
        [
            ("app1", "api", 100.5),
            (HOST, "nginx", 100.0),
            (HOST, "nginx", 99.0),
            (HOST, "postgres", 100.75),
        ]
    )
    assert result["changed"] is False
    assert f"--since=-48h --grep=(?<![A-Za-z0-9]){ID}(?![A-Za-z0-9])" in host.arguments.read_text()


def test_a_repeated_line_is_found_once(host: Host, find: Find) -> None:
    line = nginx()
    host.write("access.log", line)
    for _ in range(2):
        host.log("nginx", line, HOST)
    assert found(find()) == [(HOST, "nginx", 100.0)]


def test_a_trace_id_finds_the_line_too(host: Host, find: Find) -> None:
    host.log("api", app("another-request", trace_id=ID))
    assert len(find()["lines"]) == 1


def test_a_line_that_only_mentions_the_id_is_not_about_it(host: Host, find: Find) -> None:
    host.log("api", app("another-request", message=f"as {ID}"))
    host.log("python3", f"{ID} is no JSON")
    host.log("python3", f'["{ID}"]')
    host.log("api", f"request {ID}0 is another one, and so is x{ID}")
    host.log("api", [1, 2, 3])
    host.write("fastmetal.json", postgres(application_name="api", message=ID))
    assert find()["lines"] == []


def test_files_from_before_the_hours_are_not_read(host: Host, find: Find) -> None:
    file = host.write("access.log.1", nginx())
    os.utime(file, (time.time() - 3 * 3600,) * 2)
    assert find(hours=2)["lines"] == []
    assert len(find(hours=4)["lines"]) == 1


def test_slow_statements_lead_to_postgres_lines(host: Host, find: Find) -> None:
    host.log("api", app(backend=7, duration_ms=250))
    result = find()
    assert result["statements"] == [{"backend": 7, "begin": 100.75, "end": 101.0}]
    host.journal.write_text("")
    host.write(
        "fastmetal.json",
        postgres(),
        postgres(pid=8),
        postgres(timestamp="1970-01-01 00:01:42.500 UTC"),
        postgres(timestamp="1970-01-01 00:01:41.900 UTC"),
    )
    later = {"backend": 8, "begin": 500, "end": 501}
    slow = find(statements=[*result["statements"], later])
    assert [line["line"]["timestamp"][17:23] for line in slow["lines"]] == ["41.000", "41.900"]


def test_an_unreadable_journal_is_a_failure(host: Host, find: Find, fake_command: FakeCommand) -> None:
    fake_command("journalctl", "echo 'No access.' >&2; exit 2")
    assert find()["msg"] == "The journal cannot be read: No access."
    assert not host.arguments.exists()


def test_bytes_that_are_no_utf8_hide_no_line(host: Host, find: Find) -> None:
    """A client chose them; journalctl shows such a message as numbers, forward_logs replaces them."""
    raw = compact(nginx(user_agent="agent")).encode().replace(b'agent"', b'caf\xe9"')
    (host.folder / "access.log").write_bytes(raw + b"\n")
    host.log("nginx", [*raw], "web2")
    host.log("nginx", raw.decode(errors="replace"), HOST)
    lines = find()
    assert sorted(found(lines)) == sorted([(HOST, "nginx", 100.0), ("web2", "nginx", 100.0)])


def test_errors_of_nginx_are_found_by_the_requests_connection(host: Host, find: Find) -> None:
    host.log("nginx", nginx(connection=42, path="/a"), "web1")

    def log_error(name: str = "web1", second: int = 40, connection: int = 42, path: str = "/a") -> None:
        message = f'connect() failed, request: "GET {path}?secret=1 HTTP/1.1", host: "h"'
        text = f"1970/01/01 00:01:{second} [error] 7#7: *{connection} {message}"
        host.log("nginx", text, name)

    log_error()
    log_error(second=48)
    log_error(connection=43)
    log_error(name="web2")
    log_error(path="/b")
    result = find()
    assert found(result) == [("web1", "nginx", 100.0), ("web1", "nginx", 100.0)]
    message = 'connect() failed, request: "GET /a HTTP/1.1", host: "h"'
    assert result["lines"][1]["line"] == {"level": "error", "message": message}


TRACEBACK = f"""\
[2026-11-30] [7] [ERROR] Unhandled exception in GET /, request {ID}
Traceback (most recent call last):
  File "/srv/shop/code/main.py", line 3, in home
    return rows[0]
           ~~~~^^^
IndexError: list index out of range

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/shop/code/main.py", line 9, in page
    raise LookupError from error
LookupError"""


def test_a_line_of_text_has_its_traceback(host: Host, find: Find) -> None:
    own = {"_PID": "7", "_STREAM_ID": "a", "__REALTIME_TIMESTAMP": "100500000"}
    for line in ["[INFO] before", *TRACEBACK.splitlines(), "[INFO] after", "  indented after"]:
        host.log("shop", line, **own)
    (line,) = find()["lines"]
    assert line == {"host": "app1", "source": "shop", "begin": 100.5, "line": {"message": TRACEBACK}}
    assert "--since=@100 --until=@103 _HOSTNAME=app1 _PID=7 _STREAM_ID=a" in host.arguments.read_text()


def test_a_line_of_text_without_a_traceback_is_one_line(host: Host, find: Find) -> None:
    host.log("shop-job-mail", f"[INFO] sent for {ID}", _PID="7")
    host.log("shop-job-mail", "[INFO] next", _PID="7")
    assert [(line["source"], line["line"]) for line in find()["lines"]] == [
        ("shop", {"message": f"[INFO] sent for {ID}"})
    ]


def test_json_without_the_usual_fields_is_found_by_the_id_anywhere(host: Host, find: Find) -> None:
    host.log("shop", {"event": "paid", "correlation": ID, "time": "noon"}, __REALTIME_TIMESTAMP="7000000")
    host.log("shop", {"event": "paid", "request_id": "another", "correlation": ID})
    assert found(find()) == [("app1", "shop", 7.0)]


def test_only_the_lines_of_a_service_are_shown(host: Host, find: Find) -> None:
    host.log("api", app())
    host.log("shop", f"[INFO] paid {ID}")
    host.log("shop-2", app())
    host.write("access.log", nginx(service="shop"), nginx(service="api", duration=0.25))
    host.write("fastmetal.json", postgres(application_name=ID, dbname="api"))
    services = ["api", "shop", "shop-2"]

    def sources(service: str) -> list[str]:
        return sorted(line["source"] for line in find(services=services, service=service)["lines"])

    assert sources("shop") == ["nginx", "shop"]
    assert sources("api") == ["api", "nginx", "postgres"]
    assert len(sources("")) == 6
