"""show_request puts the lines of a request in order and says which hosts were not searched."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest

from plugins.action import show_request

NGINX = {
    "method": "GET",
    "path": "/a",
    "status": 200,
    "duration": 0.0123,
    "upstream": "unix:/run/api.sock",
    "upstream_status": "200",
    "upstream_duration": "0.010",
    "client": "192.0.2.1",
    "cache": "",
}
ACCESS = {"logger": "app.access", "method": "GET", "path": "/a", "status": 200, "duration_ms": 9.6}
LINES = [
    ("nginx", NGINX, "GET /a 200 in 12 ms for 192.0.2.1, by unix:/run/api.sock (200 in 0.010 s)"),
    (
        "nginx",
        NGINX | {"upstream": "", "upstream_status": "", "upstream_duration": "", "cache": "HIT"},
        "GET /a 200 in 12 ms for 192.0.2.1, by itself (- in - s), cache HIT",
    ),
    ("nginx", {"level": "error", "message": "connect() failed"}, "error connect() failed"),
    ("app", ACCESS, "GET /a 200 in 10 ms"),
    ("app", ACCESS | {"user": "ann"}, "GET /a 200 in 10 ms for ann"),
    (
        "app",
        {
            "time": "x",
            "level": "INFO",
            "logger": "app.db",
            "message": "Slow.",
            "request_id": "i",
            "backend": 7,
        },
        "INFO Slow. backend=7",
    ),
    ("shop", {"message": "[ERROR] Lost.\nTraceback …"}, "[ERROR] Lost.\nTraceback …"),
    ("app", {"level": "ERROR", "message": "Lost.", "exc_info": "Traceback …"}, "ERROR Lost.\nTraceback …"),
    (
        "postgres",
        {"error_severity": "LOG", "message": "duration: 1 ms", "dbname": "api"},
        "LOG duration: 1 ms [api]",
    ),
]


@pytest.mark.parametrize(("source", "line", "text"), LINES)
def test_sentences(source: str, line: dict[str, Any], text: str) -> None:
    assert show_request.sentence(source, line) == text


def entry(begin: float, source: str, line: dict[str, Any], host: str = "web1") -> dict[str, Any]:
    """Return a line as request_lines does."""
    return {"begin": begin, "host": host, "source": source, "line": line}


def show(*results: tuple[str, dict[str, Any]], service: str = "") -> tuple[dict[str, Any], list[str]]:
    """Run the action; return its result and what it displays."""
    arguments = {"request_id": "abc", "service": service, "hours": 48, "results": list(results)}
    task = MagicMock(args=arguments, async_val=0)
    action = show_request.ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())
    action._display = MagicMock()
    result = action.run(task_vars={})
    return result, [call.args[0] for call in action._display.display.call_args_list]


def test_lines_are_in_the_order_of_their_start_and_each_once() -> None:
    access, edge = entry(1.5, "app", ACCESS, "app1"), entry(0.25, "nginx", NGINX)
    later = [entry(begin, "app", ACCESS, "app1") for begin in (5, 3, 4, 2)]
    result, lines = show(("a", {"lines": [access]}), ("b", {"lines": [edge, access, *later]}))
    assert "failed" not in result
    assert "Request abc, 1970-01-01 (UTC)" in lines[0]
    assert lines[1].startswith("00:00:00.250  web1  nginx  GET /a 200 in 12 ms")
    assert lines[2] == "00:00:01.500  app1  app    GET /a 200 in 10 ms"
    assert [line[:12] for line in lines[3:]] == [f"00:00:0{second}.000" for second in (2, 3, 4, 5)]


def test_no_line_is_a_failure() -> None:
    result, lines = show(("web1", {"lines": []}))
    assert result["failed"]
    assert "No line of the last 48 hours is about the request abc" in result["msg"]
    assert lines == []
    result, _ = show(("web1", {"lines": []}), service="shop")
    assert "about the request abc of shop: check" in result["msg"]


def test_an_unreachable_host_is_named() -> None:
    _, lines = show(
        ("b", {"unreachable": True}), ("a", {"lines": [entry(0, "app", ACCESS)]}), ("c", {"skipped": 1})
    )
    assert lines[-1] == "Unreachable, not searched: b."
