"""A real Gunicorn with two of the role's workers, on a socket passed as systemd does it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.auth import READ_OPERATIONS, Tokens
from app.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What systemd does between fork and exec: the socket becomes descriptor 3, and the environment has the pid.
HANDOVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *sys.argv[2:]])
"""


class Server:
    """A Gunicorn instance and its output."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.path = directory / "api.sock"
        self.out, self.err = directory / "out", directory / "err"
        for name in ("metrics", "run"):
            (directory / name).mkdir()
        notify_path = directory / "notify.sock"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(notify_path))
        self.notify.settimeout(60)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(4096)
        descriptor = self.listener.fileno()
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", HANDOVER, str(descriptor)),
                    *("--config", str(HERE / "gunicorn.conf.py"), "app.main:create_app()"),
                ],
                cwd=ROOT,
                pass_fds=[descriptor],
                stdout=out,
                stderr=err,
                env={
                    **environment,
                    "PATH": os.environ["PATH"],
                    "NOTIFY_SOCKET": str(notify_path),
                    "PYTHONPATH": str(ROOT / "roles/app/files"),
                    "RUNTIME_DIRECTORY": str(directory / "run"),
                    "PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"),
                },
            )

    def client(self) -> httpx.Client:
        """Return a client with connections of its own."""
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.path), verify=False), base_url="http://api", timeout=20
        )

    def lines(self, path: Path) -> list[str]:
        """Return the lines of a stream."""
        return path.read_text().splitlines()

    def stop(self) -> int:
        """Stop it and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        """Release all resources."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.listener.close()
        self.notify.close()


@pytest.fixture
def server(migrated: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("g"), migrated)
    try:
        assert b"READY=1" in server.notify.recv(1000)  # Type=notify
        yield server
    finally:
        server.close()


def metric(client: httpx.Client, line: str) -> float:
    text = client.get("/metrics").text
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_two_workers_serve_count_and_log_as_one(server: Server) -> None:
    url = "/api/v1/products/9000000000000000000"

    def ask(number: int) -> str:
        with server.client() as client:
            answer = client.get(
                url, headers={"X-Request-ID": f"request-{number}", "X-Forwarded-For": "192.0.2.9"}
            )
        assert answer.status_code == 404
        return answer.headers["x-request-id"]

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(ask, range(200)))
    counted = 'http_requests_total{method="GET",route="/api/v1/products/{id}",status="404"}'
    with server.client() as client:
        assert metric(client, counted) == 200
        assert metric(client, "http_requests_in_flight") == 1
        assert metric(client, "cache_up") == 1
        assert metric(client, "app_workers") == 2
        # A killed worker is replaced, and its counts stay.
        victim = int(
            Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()[0]
        )
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while sum('"Started"' in line for line in server.lines(server.err)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with server.client() as client:
        assert client.get("/health/ready").status_code == 200
        assert metric(client, counted) == 200
        assert metric(client, "http_requests_in_flight") == 1

    assert server.stop() == 0
    lines = [json.loads(line) for line in server.lines(server.out)]
    assert {line["request_id"] for line in lines} == ids
    assert {(line["route"], line["status"], line["client"]) for line in lines} == {
        ("/api/v1/products/{id}", 404, "192.0.2.9")
    }
    assert all({"time", "level", "logger", "message", "duration_ms", "user"} <= set(line) for line in lines)
    errors = [json.loads(line) for line in server.lines(server.err)]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in errors)
    assert sum(line["message"] == "Started" for line in errors) == 3
    assert sum(line["message"] == "Stopped" for line in errors) == 2
    assert [line for line in errors if "never" in line["message"] or "Traceback" in str(line)] == []


def test_the_details_sum_up_both_workers(server: Server, service: Callable[..., Settings]) -> None:
    token = Tokens(service()).issue("ann", frozenset({READ_OPERATIONS}))
    with server.client() as client:
        detail = client.get("/health/detail", headers={"Authorization": f"Bearer {token}"}).json()
    process, workers = detail["process"], detail["workers"]
    assert workers["workers"] == 2
    assert workers["memory_bytes"] > 1.5 * process["memory_bytes"]
    assert workers["threads"] >= process["threads"] + 1


def test_control_characters_in_a_path_reach_no_route(server: Server) -> None:
    for path in (b"/metrics%0a", b"/metrics\n", b"/metrics\x0b", b"/metrics\x7f", b"/%00"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(server.path))
            client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := client.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 400 "), path
        assert b"http_requests" not in answer


def test_a_cold_key_is_read_once_over_the_workers(server: Server, writer: dict[str, str]) -> None:
    with server.client() as client:
        product = {"name": "n", "category": "c", "price": "1"}
        address = client.post("/api/v1/products", json=product, headers=writer).headers["location"]

    def ask(_: int) -> int:
        with server.client() as client:
            return client.get(address).status_code

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(ask, range(300))) == {200}
    with server.client() as client:
        assert metric(client, 'database_query_duration_seconds_count{query="products.read"}') == 1


def test_the_backlog_is_the_configured_one(server: Server) -> None:
    with server.client() as client:
        assert client.get("/health/live").status_code == 200
    time.sleep(0.5)
    listing = subprocess.run(
        ["ss", "-Hxl", "src", str(server.path)], capture_output=True, text=True, check=True
    )
    assert listing.stdout.split()[3] == "4096"


def test_an_instance_before_its_shutdown_is_not_ready_and_closes_its_connections(
    migrated: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("g")
    server = Server(directory, migrated | {"SHUTDOWN_FILE": str(directory / "shutdown")})
    try:
        assert b"READY=1" in server.notify.recv(1000)
        with server.client() as client:
            assert client.get("/health/ready").status_code == 200
            (directory / "shutdown").touch()
            time.sleep(1)
            for _ in range(20):  # each on a fresh connection, so that both workers answer
                ready = client.get("/health/ready")
                assert (ready.status_code, ready.headers["connection"]) == (503, "close")
                assert client.get("/api/v1/products").status_code == 200
        assert server.stop() == 0
    finally:
        server.close()


def test_a_request_whose_body_is_incomplete_is_answered_when_the_server_stops(
    server: Server, writer: dict[str, str]
) -> None:
    body = b'{"name": "n", "category": "c", "price": "1"}'
    with server.client() as client, socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(20)
        slow.connect(str(server.path))
        head = {**writer, "Host": "api", "Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        slow.sendall(f"POST /api/v1/products HTTP/1.1\r\n{lines}\r\n".encode() + body[:9])
        deadline = time.monotonic() + 10
        while metric(client, "http_requests_in_flight") < 2:
            assert time.monotonic() < deadline
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        slow.sendall(body[9:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 201 ")
    assert server.process.wait(60) == 0


def test_head_leaves_the_connection_usable(server: Server) -> None:
    with server.client() as client:
        for _ in range(3):
            whole, head = client.get("/api/v1/products"), client.head("/api/v1/products")
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(whole.content))
            assert head.headers["etag"] == whole.headers["etag"]


def test_in_flight_requests_are_finished_on_stop(server: Server) -> None:
    def ask(_: int) -> int:
        with server.client() as client:
            return client.get("/api/v1/products").status_code

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, number) for number in range(8)]
        assert {answer.result() for answer in answers} == {200}
        last = [pool.submit(ask, number) for number in range(8)]
        time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        # Accepted requests are answered; the rest waits in the socket's queue for the next instance.
        assert server.process.wait(60) == 0
        server.listener.close()
        for answer in last:
            error = answer.exception()
            assert error is None or isinstance(error, httpx.ReadError | httpx.ConnectError), error
            assert error is not None or answer.result() == 200


def test_wrong_settings_stop_gunicorn_with_one_sentence(
    migrated: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = Server(tmp_path_factory.mktemp("g"), migrated | {"SECRET_KEY": "short"})
    try:
        # 4 by design; Gunicorn exits with 1 if both workers fail in the same instant.
        assert server.process.wait(60) in (1, 4)
        assert "The service cannot start: SECRET_KEY is too short" in server.err.read_text()
    finally:
        server.close()
