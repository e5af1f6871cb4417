"""Gunicorn as an instance runs it: metrics slots, hooks, startup probe, readiness and limits."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import MagicMock

import gunicorn_worker
import pytest

from tests.instance import Start, render

APP = """
import os
from pathlib import Path


async def application(scope, receive, send):
    healthy = scope["path"] != "/health" or Path("healthy").exists()
    headers = [(b"Content-Type", b"text/event-stream; charset=utf-8")] if scope["path"] == "/events" else []
    await send({"type": "http.response.start", "status": 200 if healthy else 503, "headers": headers})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


def refused():
    raise SystemExit(4)
"""


def test_a_new_instance_is_ready_once_its_health_check_succeeds(start: Start) -> None:
    instance = start(APP, "1.0.1")
    assert instance.notify.recv(1000) == b"STATUS=GET /health answered 503"
    (instance.directory / "healthy").touch()
    instance.wait_until_ready()
    status, headers = instance.get()
    assert (status, headers["X-Release"]) == (200, "1.0")
    assert headers["X-Accel-Buffering"] is None
    _, headers = instance.get("/events")
    assert (headers["X-Accel-Buffering"], headers["X-Release"]) == ("no", "1.0")


def test_an_instance_that_is_not_new_needs_no_probe(start: Start) -> None:
    instance = start(APP, "1.0.2")
    instance.wait_until_ready()
    assert instance.get("/health")[0] == 503


def test_the_hooks_of_the_role_and_the_operators_run(start: Start) -> None:
    instance = start(APP)
    instance.wait_until_ready()
    directory = instance.directory
    assert (directory / "own-ready").exists()
    workers = {int(path.name.removeprefix("own-")) for path in directory.glob("own-[0-9]*")}
    assert len(workers) == 2
    assert {path.name for path in (directory / "metrics").glob("*.slot")} == {"1.slot", "2.slot", "3.slot"}
    assert {path.name for path in (directory / "run").glob("*.listens")} == {"2.listens", "3.listens"}
    os.kill(workers.pop(), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while len([*directory.glob("own-[0-9]*")]) < 3 or not (directory / "own-exit").exists():
        assert time.monotonic() < deadline, instance.out.read_text()
        time.sleep(0.1)
    # The new worker has the slot of the one that was killed.
    assert len([*(directory / "metrics").glob("*.slot")]) == 3


def test_a_connection_too_many_is_answered_503(start: Start) -> None:
    instance = start(APP, workers=1, worker_connections=1)
    instance.wait_until_ready()
    with instance.connect() as first:
        first.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
        with instance.connect() as second:
            assert second.recv(1000) == gunicorn_worker.BUSY


def test_settings_of_the_operator_replace_the_roles_worker() -> None:
    own = {"worker_class": "asgi", "logger_class": "x.Y"}
    text = render(
        app_gunicorn=own, __app_given_gunicorn=own, app_gunicorn_hooks="", app_preload_imports=False
    )
    assert 'worker_class = "asgi"' in text
    assert "gunicorn_worker.worker(" not in text
    assert "AccessLogger" not in text
    assert 'when_ready_hook("", ' in text


@pytest.fixture
def new_slots(tmp_path: Path) -> Iterator[Callable[[], gunicorn_worker.MetricsSlots]]:
    with contextlib.ExitStack() as stack:

        def new_slots() -> gunicorn_worker.MetricsSlots:
            slots = gunicorn_worker.MetricsSlots(tmp_path)
            stack.callback(slots.close)
            return slots

        yield new_slots


def test_slots_are_taken_in_order_and_reused(new_slots: Callable[[], gunicorn_worker.MetricsSlots]) -> None:
    first, second, third = new_slots(), new_slots(), new_slots()
    first.take()
    second.take()
    assert (first.number, second.number) == (1, 2)
    first.close()
    third.take()
    assert third.number == 1


def test_metrics_begin_anew_only_without_another_process(
    new_slots: Callable[[], gunicorn_worker.MetricsSlots], tmp_path: Path
) -> None:
    counter = tmp_path / "counter_1.db"
    first = new_slots()
    first.take()
    counter.touch()
    new_slots()
    assert counter.exists()
    first.close()
    new_slots()
    assert not counter.exists()


def test_an_app_that_cannot_be_imported_ends_the_instance() -> None:
    server = MagicMock()
    hook = gunicorn_worker.when_ready_hook("no_such_module:app", None)
    with pytest.raises(SystemExit):
        hook(server)
    server.log.exception.assert_called_once_with("The app cannot be imported")


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 8])
def test_an_instance_with_wrong_settings_ends_with_its_workers_status(start: Start, workers: int) -> None:
    """The workers fail together, and systemd starts any other status than 4 again."""
    instance = start(APP, wsgi_app="service:refused()", workers=workers)
    assert instance.process.wait(30) == 4, instance.out.read_text()


def test_a_hook_of_the_wrong_arity_is_refused(tmp_path: Path) -> None:
    slots = gunicorn_worker.MetricsSlots(tmp_path)
    with pytest.raises(TypeError, match="arity of: 2"):
        gunicorn_worker.post_fork_hook(slots, lambda server: server)
