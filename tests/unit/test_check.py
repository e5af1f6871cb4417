"""The requests that check a release: logins, headers, forms, JSON, and values kept for the next request."""

from __future__ import annotations

import importlib.util
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.lab import ROOT

SPEC = importlib.util.spec_from_file_location("check", ROOT / "roles/app/files/release/check.py")
assert SPEC
assert SPEC.loader
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)


class Handler(BaseHTTPRequestHandler):
    """An app whose form login sets a cookie and whose API wants a token."""

    server: Any
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("X-Release", self.server.release)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        match self.path:
            case "/login" if self.command == "GET":
                self.answer(200, '<input name="csrf" value="c5">', Set_Cookie="session=s1; Path=/; HttpOnly")
            case "/login":
                right = {"user": ["ann"], "password": ["p w"], "csrf": ["c5"]}
                same = self.headers["Cookie"] == "session=s1" and parse_qs(body) == right
                self.answer(303 if same else 403, Location="https://shop.example.com/home?x=1", X_Tag="t7")
            case "/home?x=1":
                self.answer(200, "welcome ann")
            case "/token":
                self.answer(200, json.dumps({"data": [{"token": "abc", "n": 5}]}))
            case "/items/5":
                right_token = self.headers["Authorization"] == "Token abc" and self.headers["X-Tag"] == "t7"
                self.answer(201 if right_token and json.loads(body) == {"t": "abc {x}"} else 401, "no")
            case _:
                self.answer(404, "nothing here")

    def do_GET(self) -> None:
        """Answer a GET."""
        self.handle_one()

    def do_POST(self) -> None:
        """Answer a POST."""
        self.handle_one()

    def log_message(self, *_: Any) -> None:
        """Keep the output clean."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    class Server(socketserver.ThreadingUnixStreamServer):
        release = "1.0"
        seen: list[tuple[str, str, dict[str, str], str]]

    with Server(str(tmp_path / "s.sock"), Handler) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


LOGIN: list[dict[str, Any]] = [
    {"path": "/login", "keep": {"csrf": 'match name="csrf" value="([^"]+)"'}, "contains": "<input"},
    {
        "method": "POST",
        "path": "/login",
        "form": {"user": "ann", "password": "p w", "csrf": "{csrf}"},
        "status": [302, 303],
        "keep": {"tag": "header X-Tag"},
    },
    {"path": "{location}", "contains": "welcome"},
    {"path": "/token", "keep": {"token": "data.0.token", "n": "data.0.n"}},
    {
        "method": "POST",
        "path": "/items/{n}",
        "headers": {"Authorization": "Token {token}", "X-Tag": "{tag}"},
        "body": {"t": "{token} {x}"},
        "status": [201],
    },
]


def fault(server: Any, *requests: dict[str, Any], release: str = "1.0", **more: str) -> str:
    wanted = {"header": "X-Release", "ca": "", "host": "shop.example.com", "requests": list(requests)}
    found: str = check.fault(server.server_address, "", release, "", wanted | more)
    return found


def test_a_check_logs_in_and_keeps_values(server: Any) -> None:
    assert fault(server, *LOGIN) == ""
    assert len(server.seen) == 5
    headers = server.seen[0][2]
    assert (headers["Host"], headers["X-Forwarded-Proto"]) == ("shop.example.com", "https")
    assert server.seen[2][2]["Cookie"] == "session=s1"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"path": "/no"}, "GET /no was answered 404: nothing here"),
        ({"path": "/token", "contains": "x1"}, "the answer to GET /token does not contain 'x1'"),
        ({"path": "/token", "keep": {"a": "data.1.token"}}, "the answer to GET /token has no data.1.token"),
        ({"path": "/login", "keep": {"a": "json"}}, "the answer to GET /login has no json"),
        ({"path": "/token", "keep": {"a": "header X-No"}}, "the answer to GET /token has no header X-No"),
        ({"path": "/token", "keep": {"a": "match (x9)"}}, "the answer to GET /token has no match (x9)"),
    ],
)
def test_a_wrong_answer_gets_a_sentence(server: Any, request_: dict[str, Any], said: str) -> None:
    assert fault(server, request_) == said


def test_any_status_of_a_list_is_accepted(server: Any) -> None:
    assert fault(server, {"path": "/", "status": list(range(100, 500))}) == ""
    assert fault(server, {"path": "/", "status": "404"}) == ""


def test_the_name_of_an_edge_may_have_a_path() -> None:
    client = check.Client("192.0.2.1", "www.example.com/shop/", "", {"requests": []})
    assert client.headers({})["Host"] == "www.example.com"
    paths = {
        "/": "/shop/",
        "/items": "/shop/items",
        "/shop/items": "/shop/items",
        "/shops": "/shop/shops",
    }
    assert {path: client.path({"path": path}) for path in paths} == paths
