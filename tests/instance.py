"""A real Gunicorn with the role's configuration, in a directory of the test."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from tests.lab import ROOT

ROLE = ROOT / "roles/app"
HOOKS = """
bind = "unix:" + str(Path.cwd() / "app.sock")


def post_fork(server, worker):
    (Path.cwd() / f"own-{os.getpid()}").touch()


def child_exit(server, worker):
    (Path.cwd() / "own-exit").touch()


def when_ready(server):
    (Path.cwd() / "own-ready").touch()
"""


def render(**variables: Any) -> str:
    """Return the role's configuration of Gunicorn."""
    loader = jinja2.FileSystemLoader(ROLE / "templates")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, autoescape=jinja2.select_autoescape())
    environment.filters["to_json"] = json.dumps
    return environment.get_template("gunicorn.conf.py.j2").render(variables)


class Instance:
    """An instance in a directory of its own."""

    def __init__(self, directory: Path, app: str, **settings: Any) -> None:
        """Write its files and start it."""
        self.directory = directory
        self.out = directory / "out"
        gunicorn = {"workers": 2, "timeout": 30, "worker_connections": 1000, "backlog": 4096}
        variables = {
            "app_name": "probe",
            "app_gunicorn": {},
            "app_gunicorn_hooks": HOOKS,
            "app_preload_imports": True,
            "app_health_path": "/health",
            "app_release_header": "X-Release",
            "__app_check_host": "shop.example.com",
            "__app_startup_probe": str(directory / "startup-probe"),
            "__app_given_gunicorn": gunicorn
            | {"wsgi_app": "service:application", "control_socket_disable": True}
            | settings,
        }
        (directory / "gunicorn.conf.py").write_text(render(**variables))
        for name in ("gunicorn_worker.py", "gunicorn_app.py"):
            shutil.copy(ROLE / "files" / name, directory)
        (directory / "service.py").write_text(app)
        for name in ("metrics", "run"):
            (directory / name).mkdir()
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(directory / "notify.sock"))
        self.notify.settimeout(30)
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", str(directory / "gunicorn.conf.py")],
                cwd=directory,
                stdout=out,
                stderr=out,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(directory),
                    "INSTANCE": "1.0.1",
                    "RELEASE": "1.0",
                    "RUNTIME_DIRECTORY": str(directory / "run"),
                    "SHUTDOWN_FILE": str(directory / "run/shutdown"),
                    "PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"),
                    "NOTIFY_SOCKET": str(directory / "notify.sock"),
                },
            )

    def connect(self) -> socket.socket:
        """Return a connection of its own."""
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(10)
        link.connect(str(self.directory / "app.sock"))
        return link

    def get(self, path: str = "/", **headers: str) -> tuple[int, http.client.HTTPMessage]:
        """Return the status and the headers of an answer, on a connection of its own."""
        with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = self.connect()
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers

    def wait_until_ready(self) -> None:
        """Wait for the notification that systemd would get."""
        while b"READY=1" not in self.notify.recv(1000):
            assert self.process.poll() is None, self.out.read_text()

    def wait_for_log(self, text: str) -> str:
        """Return the log once it has a text."""
        deadline = time.monotonic() + 10
        while text not in (log := self.out.read_text()):
            assert time.monotonic() < deadline, log
            time.sleep(0.05)
        return log


Start = Callable[..., Instance]
