"""bin/fastmetal on the scenario's hosts: SSH verbs and a playbook."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from testinfra.host import Host

from tests.edge import Site
from tests.lab import ROOT, clean_environment

pytestmark = pytest.mark.on("once")
INVENTORY = ROOT / "molecule" / os.environ["MOLECULE_SCENARIO_NAME"] / "inventory"
WAIT_SECONDS = 20.0


def fastmetal(*words: str) -> list[str]:
    """Return the command line of a verb."""
    return [sys.executable, str(ROOT / "bin/fastmetal"), "-e", str(INVENTORY), "-s", "api", *words]


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a verb until the end of the block."""
    process = subprocess.Popen(
        fastmetal(*words), env=clean_environment(), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=10)


def read_until(stream: int, *words: str) -> str:
    """Return what a stream says until all words have come; fail after WAIT_SECONDS."""
    found, end = "", time.monotonic() + WAIT_SECONDS
    while not all(word in found for word in words):
        ready, _, _ = select.select([stream], [], [], end - time.monotonic())
        assert ready, f"{words} did not come: {found}"
        found += os.read(stream, 65536).decode()
    return found


def test_a_playbook_runs_as_a_verb(host: Host) -> None:
    command = fastmetal("status", "--", "--limit", host.backend.hostname)
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert host.backend.hostname in done.stdout


def test_psql_opens_at_a_terminal_with_the_rights_of_the_service(host: Host) -> None:
    ours, theirs = pty.openpty()
    # A terminal without rows would make psql page every answer.
    termios.tcsetwinsize(theirs, (50, 200))
    command = fastmetal("psql", "--host", host.backend.hostname)
    process = subprocess.Popen(
        command,
        env=clean_environment(TERM="dumb"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(ours, "api=>")
        os.write(ours, b"SELECT current_user, count(*) >= 0 AS readable FROM products;\n")
        assert "api          | t" in read_until(ours, "(1 row)")
        os.write(ours, b"DROP TABLE products;\n")
        read_until(ours, "must be owner of table products")
        os.write(ours, b"\\q\n")
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_console_is_in_the_sandbox_with_credentials(host: Host) -> None:
    code = (
        "import os; print(os.getuid(), os.listdir(os.environ['CREDENTIALS_DIRECTORY'])); open('/srv/x', 'w')"
    )
    done = subprocess.run(
        fastmetal("console", "--host", host.backend.hostname),
        env=clean_environment(),
        input=code,
        capture_output=True,
        text=True,
        check=False,
    )
    uid = host.check_output("id -u api")
    assert done.stdout.startswith(f"{uid} ["), done.stderr
    assert "secret_key" in done.stdout
    assert "Read-only file system" in done.stderr


def test_a_tunnel_leads_to_prometheus(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running("tunnel", "prometheus", "--host", host.backend.hostname, "--port", str(port)):
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert time.monotonic() < end, "the tunnel does not answer"
                time.sleep(0.2)


def test_logs_follow_all_hosts(host: Host, site: Site, hosts: dict[str, Host]) -> None:
    with running("logs", "--follow", "--lines", "1") as process:
        assert process.stdout
        stream = process.stdout.fileno()
        # The last line of each host, then a new one.
        read_until(stream, *(f"  {name}" for name in hosts))
        request_id = site.request("/api/v1/products").headers["X-Request-ID"]
        lines = read_until(stream, request_id)
    [line] = [line for line in lines.splitlines() if request_id in line]
    assert line.split()[1:3] == [host.backend.hostname, "api"]
