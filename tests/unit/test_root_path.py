"""A FastAPI application below a path: edges pass the path on, and Gunicorn names it as root_path."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.roles import Role

APPLICATION = """
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

app = FastAPI()

@app.get("/items/")
def items(request: Request) -> str:
    return request.url_for("items").path

async def page(request):
    return PlainTextResponse(request.url_for("page").path)

app.mount("/pages", Starlette(routes=[Route("/one", page, name="page")]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Serve an application with the root_path of an entry with a path, and return its socket."""
    home = tmp_path_factory.mktemp("served")
    (home / "web.py").write_text(APPLICATION)
    role = Role("app", app_service={"path": "/shop/"})
    root_path = role.templar.template(role.templar.available_variables["app_root_path"])
    path = home / "s.sock"
    options = [
        f"--control-socket={home}/control",
        f"--bind=unix:{path}",
        "--worker-class=asgi",
        f"--root-path={root_path}",
        f"--chdir={home}",
    ]
    command = [sys.executable, "-m", "gunicorn", *options, "web:app"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield path
        process.terminate()


def get(path: Path, target: str) -> tuple[int, str]:
    """Return the status and the body of an answer."""
    connection = http.client.HTTPConnection("www.example.com")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", target)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_routes_links_and_the_documentation_have_the_path(served: Path) -> None:
    assert get(served, "/shop/items/") == (200, '"/shop/items/"')
    assert get(served, "/shop/pages/one") == (200, "/shop/pages/one")
    status, page = get(served, "/shop/docs")
    assert (status, "url: '/shop/openapi.json'" in page) == (200, True)
    assert json.loads(get(served, "/shop/openapi.json")[1])["servers"] == [{"url": "/shop"}]


def test_checks_on_the_socket_ask_without_the_path(served: Path) -> None:
    assert get(served, "/items/") == (200, '"/shop/items/"')
