"""`make dev` in a copy of the checkout: it serves, and reloads when the code changes."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.lab import ROOT

SOURCES = (
    "Makefile",
    "galaxy.yml",
    "requirements-app.txt",
    "requirements-bootstrap.txt",
    "requirements-dev.txt",
)


@pytest.fixture
def checkout(migrated: dict[str, str], tmp_path: Path) -> Path:
    """Return a copy of what `make dev` uses, with the tests' servers in .env.development."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "app", folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy2(ROOT / name, folder / name)  # with its time, or Make would build the environment
    (folder / ".venv").symlink_to(ROOT / ".venv")
    settings = {name: value for name, value in migrated.items() if name not in ("ENVIRONMENT", "RELEASE")}
    (folder / ".env.development").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return folder


@pytest.fixture
def server(checkout: Path) -> Iterator[httpx.Client]:
    """Run `make dev` and return a client of it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    log = checkout.parent / "log"
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "dev", f"DEV_PORT={port}"],
            cwd=checkout,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5, trust_env=False) as client:
            wait_for(lambda: process.poll() is not None or answer(client, "/health/ready") == "ready", log)
            assert process.poll() is None, log.read_text()
            yield client
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl+C does
        assert process.wait(60) in (0, -signal.SIGINT, 2), log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answer(client: httpx.Client, path: str) -> str:
    """Return the status in an answer, or nothing while the server reloads."""
    try:
        return str(client.get(path).json().get("status", ""))
    except httpx.TransportError:
        return ""


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_a_change_of_the_code_is_served(checkout: Path, server: httpx.Client) -> None:
    log = checkout.parent / "log"
    assert server.get("/api/v1/products").status_code == 200

    source = checkout / "app/health.py"
    text = source.read_text()
    assert '{"status": "alive"}' in text
    source.write_text(text.replace('{"status": "alive"}', '{"status": "changed"}'))
    wait_for(lambda: answer(server, "/health/live") == "changed", log)

    # Code that cannot be imported does not end the command.
    source.write_text("def broken(:\n")
    wait_for(lambda: "SyntaxError" in log.read_text(), log)
    source.write_text(text)
    wait_for(lambda: answer(server, "/health/live") == "alive", log)
