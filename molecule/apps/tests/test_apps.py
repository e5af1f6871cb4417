"""Four unchanged applications share a host, and releases of one disturb neither it nor the others."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.apps import APPS, commit
from tests.apps.host import Apps
from tests.browser import Browser
from tests.lab import wait_until

RATE = 12
# The user of `notes`.
NAME, PASSWORD = f"user-{secrets.token_hex(4)}", secrets.token_hex(16)
REVISION = '''"""Pin notes"""

import sqlalchemy as sa
from alembic import op

revision = "c41f7a9e0d35"
down_revision = "6d1f3a0b7c52"


def upgrade() -> None:
    op.add_column("notes", sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("notes", "pinned")
'''


def enqueue(apps: Apps, text: str, seconds: float) -> str:
    """Give the worker of `jobs` a task, and return its id."""
    key = apps.environment("jobs")["API_KEY"]
    answer = apps.ask("jobs", "/tasks", "POST", {"text": text, "seconds": seconds}, X_API_Key=key)
    assert answer.status == 202, answer
    return str(json.loads(answer.body)["id"])


def read_task(apps: Apps, task: str) -> dict[str, Any]:
    """Return the state of a task."""
    state: dict[str, Any] = json.loads(apps.ask("jobs", f"/tasks/{task}").body)
    return state


def script_of(apps: Apps) -> str:
    """Return the path of the script in the page of `board`."""
    (path,) = re.findall(r'src="(/assets/[^"]+)"', apps.ask("board", "/").body.decode())
    return str(path)


def python(apps: Apps, service: str) -> str:
    """Return the version of the Python that a service runs with."""
    return apps.ssh(f"{service}-manage -c 'import sys; print(*sys.version_info[:2], sep=\".\")'")


@pytest.fixture(scope="module")
def token(apps: Apps) -> str:
    """Sign up at `notes`, log in, and return the bearer token."""
    body = {"username": NAME, "password": PASSWORD}
    assert apps.ask("notes", "/api/users", "POST", body).status == 201
    answer = apps.ask("notes", "/api/users/login", "POST", form=body)
    return f"Bearer {json.loads(answer.body)['access_token']}"


@pytest.fixture(scope="module")
def admin(apps: Apps) -> str:
    """Log in at `board` as the user that its first migration made, and return the bearer token."""
    word = apps.environment("board")["FIRST_SUPERUSER_PASSWORD"]
    form = {"username": "admin@board.test", "password": word}
    answer = apps.ask("board", "/api/v1/login/access-token", "POST", form=form)
    return f"Bearer {json.loads(answer.body)['access_token']}"


def test_notes_are_kept(apps: Apps, token: str) -> None:
    written = apps.ask("notes", "/api/notes", "POST", {"title": "First"}, Authorization=token)
    assert written.status == 201
    path = f"/api/notes/{json.loads(written.body)['id']}"
    assert json.loads(apps.ask("notes", path, Authorization=token).body)["title"] == "First"


def test_a_board_has_cards_and_its_own_python(apps: Apps, admin: str) -> None:
    written = apps.ask("board", "/api/v1/cards/", "POST", {"title": "Hello World"}, Authorization=admin)
    assert json.loads(written.body)["slug"] == "hello-world"
    # A module of the tree, which imports the dependency that was built from source.
    assert int(apps.ssh("board-manage -m app.cli count")) >= 1
    assert python(apps, "notes") == apps.ssh(
        "python3 -c 'import sys; print(*sys.version_info[:2], sep=\".\")'"
    )
    assert python(apps, "board") != python(apps, "notes")


def test_a_task_runs_in_the_worker(apps: Apps) -> None:
    task = enqueue(apps, "hello", 0)
    wait_until(10, lambda: read_task(apps, task)["result"] == "HELLO")


def test_each_service_has_only_what_it_asked_for(apps: Apps) -> None:
    """Databases of three services, none of the fourth; no process has another service's secrets."""
    databases = apps.ssh("runuser -u postgres -- psql -Atc 'SELECT datname FROM pg_database'").split()
    assert {*databases} & {*APPS} == {"board", "jobs", "notes"}
    environments = {service: apps.environment(service) for service in APPS}
    keys = {service: known.get("SECRET_KEY") or known["API_KEY"] for service, known in environments.items()}
    assert len({*keys.values()}) == len(APPS)
    for service in APPS:
        others = [key for other, key in keys.items() if other != service]
        assert not {*others} & {*environments[service].values()}


def test_pages_load_without_an_error_in_the_console(tab: Browser) -> None:
    tab.open("https://board.test/", "document.querySelector('h1')?.innerText.endsWith('cards')")
    assert tab.faults == []
    tab.open("https://chat.test/", "document.querySelector('form')")
    assert tab.faults == []
    tab.open("https://chat.test/rooms/lobby", "document.body.classList.contains('connected')")
    words = secrets.token_hex(8)
    tab.evaluate(f"document.getElementById('text').value = '{words}'")
    tab.evaluate("document.querySelector('#say button').click()")
    tab.wait_for(f"document.getElementById('messages').innerText.includes('guest: {words}')")
    # The page shares an image, which Nginx serves from the directory that the service writes.
    tab.evaluate(
        "fetch('/static/icon.svg').then(answer => answer.blob()).then(blob => {"
        " const files = new DataTransfer(); files.items.add(new File([blob], 'icon.svg'));"
        " document.getElementById('image').files = files.files; return share() })"
    )
    tab.wait_for("[...document.querySelectorAll('#messages img')].some(image => image.naturalWidth > 0)")
    assert tab.faults == []
    tab.open("https://chat.test/docs", "document.title === 'drawn'")
    assert tab.faults == []


def plans(apps: Apps, token: str, admin: str) -> Mapping[str, Mapping[str, Any]]:
    """Return reads and writes of each application; capitals use a new connection."""
    note = {
        "path": "/api/notes",
        "method": "POST",
        "status": 201,
        "body": '{"title": "{key}"}',
        "expect": "{key}",
    }
    card = note | {"path": "/api/v1/cards/"}
    types = {"Content-Type": "application/json"}
    key = {"X-API-Key": apps.environment("jobs")["API_KEY"]} | types
    return {
        "notes": {
            "mix": "rrRw",
            "requests": {
                "r": {"path": "/", "expect": "notes"},
                "w": note | {"headers": {"Authorization": token} | types},
            },
        },
        "board": {
            "mix": "rrRwa",
            "requests": {
                "r": {"path": "/api/v1/cards/1", "expect": "hello-world"},
                "w": card | {"headers": {"Authorization": admin} | types},
                "a": {"path": "/", "expect": "/assets/"},
            },
        },
        "chat": {
            "mix": "rrR",
            "requests": {"r": {"path": "/rooms/lobby", "expect": "messages"}},
        },
        "jobs": {
            "mix": "rrRw",
            "requests": {
                "r": {"path": "/health", "expect": "ok"},
                "w": {
                    "path": "/tasks",
                    "method": "POST",
                    "status": 202,
                    "headers": key,
                    "body": '{"text": "{key}"}',
                    "expect": "id",
                },
            },
        },
    }


def next_release(apps: Apps, service: str) -> None:
    """Change a repository as its authors would for a release, and commit."""
    tree = apps.repository(service)
    versions = {"board": "backend/pyproject.toml", "jobs": "pyproject.toml"}
    file = tree / versions.get(service, "VERSION")
    text, count = re.subn(
        r"\b1\.(\d+)\.0\b", lambda found: f"1.{int(found[1]) + 1}.0", file.read_text(), count=1
    )
    assert count, file
    file.write_text(text)
    if service == "notes":
        (tree / "migrations/versions/c41f7a9e0d35_pin_notes.py").write_text(REVISION)
    elif service == "board":
        rename_script(tree / "backend/app/dist")
    commit(tree, "Release")


def rename_script(dist: Path) -> None:
    """Change the script of a page and the hash in its name, as a bundler does."""
    (old,) = dist.glob("assets/*.js")
    content = old.read_bytes() + b"\n"
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())[:8].decode()
    new = old.with_name(f"index-{digest}.js")
    new.write_bytes(content)
    old.unlink()
    page = dist / "index.html"
    page.write_text(page.read_text().replace(old.name, new.name))


@contextmanager
def websocket(apps: Apps, path: str) -> Iterator[socket.socket]:
    """Open a WebSocket of `chat`."""
    with apps.site("chat").connect() as link:
        lines = [f"GET {path} HTTP/1.1", "Host: chat.test", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", ""]
        link.sendall("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += link.recv(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield link


def closing_code(link: socket.socket) -> int:
    """Read frames up to the one that closes a WebSocket, and return its code."""
    with link.makefile("rb") as frames:
        while True:
            first, size = frames.read(2)
            if size == 126:
                (size,) = struct.unpack("!H", frames.read(2))
            content = frames.read(size)
            if first & 0xF == 8:
                return int(struct.unpack("!H", content[:2])[0])


@pytest.mark.timeout(600)
def test_releases_and_rollbacks_lose_no_request_of_any_service(
    apps: Apps, token: str, admin: str, measured: list[str]
) -> None:
    live = {service: apps.release(service) for service in APPS}
    first = dict(live)
    script = script_of(apps)
    task = enqueue(apps, "slow", 20)
    seconds = []
    with apps.load(plans(apps, token, admin), RATE) as loads, websocket(apps, "/ws/lobby") as talk:
        # The service of the slow task goes first.
        for service in ("jobs", "chat", "board", "notes"):
            next_release(apps, service)
            seconds.append(f"{service} {apps.deploy(service):.0f} s")
            live[service] = apps.release(service)
            assert live == {other: apps.release(other) for other in APPS}
        assert closing_code(talk) == 1012
        assert read_task(apps, task) == {"id": task, "runs": 1, "result": "SLOW"}
        # A page that was loaded before the release finds its script.
        assert script_of(apps) != script
        assert apps.ask("board", script).status == 200
        measured.append(f"apps: deploys under load: {', '.join(seconds)}")
        seconds = [f"{service} {apps.rollback(service):.0f} s" for service in APPS]
        measured.append(f"apps: rollbacks under load: {', '.join(seconds)}")
        assert {service: apps.release(service) for service in APPS} == first
        assert script_of(apps) == script
    for service, load in loads.items():
        measured.append(f"apps: {service}: {load.report.figures}")
    assert [failure for load in loads.values() for failure in load.report.failures][:5] == []


def test_pages_load_after_releases(tab: Browser) -> None:
    """The image that was shared before the releases is there."""
    tab.open("https://board.test/", "document.querySelector('h1')?.innerText.endsWith('cards')")
    assert tab.faults == []
    tab.open("https://chat.test/rooms/lobby", "document.body.classList.contains('connected')")
    tab.wait_for("[...document.querySelectorAll('#messages img')].some(image => image.naturalWidth > 0)")
    assert tab.faults == []
