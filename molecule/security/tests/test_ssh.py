"""SSH, as a neighbour sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.attacker import LAB, SCANNERS, Attacker
from tests.lab import LABCTL, ROOT

HOSTS = ["front1", "back1"]
each_host = pytest.mark.parametrize("host", HOSTS)

# Holds idle connections to an address's port 22, opening new ones as sshd closes them, until its input ends.
HOLD = """
import socket, sys, threading, time
address, count = sys.argv[1], int(sys.argv[2])
def hold():
    while True:
        try:
            with socket.create_connection((address, 22), timeout=5) as link:
                link.settimeout(None)
                while link.recv(1024):
                    pass
        except OSError:
            pass
        time.sleep(0.2)
for _ in range(count):
    threading.Thread(target=hold, daemon=True).start()
time.sleep(2)
print("held", flush=True)
sys.stdin.read()
"""


def log_in(host: str) -> int:
    """Log in as an operator on a new connection, from the control node, and return the status."""
    command = [
        "ssh",
        "-F",
        str(LAB.directory / "ssh_config"),
        "-o",
        "ControlPath=none",
        "-l",
        "ops",
        host,
        "true",
    ]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


@each_host
def test_ssh_audit_has_nothing_to_say(attacker: Attacker, addresses: dict[str, str], host: str) -> None:
    # Its rate test is a flood, and Diffie-Hellman, which that is about, is off.
    scan = attacker.run(SCANNERS / "ssh-audit", "--json", "--skip-rate-test", addresses[host])
    report = json.loads(scan.stdout)
    algorithms = [entry for kind in ("kex", "key", "enc", "mac") for entry in report[kind]]
    assert len(algorithms) > 5
    noted = {entry["algorithm"]: entry.get("notes", {}) for entry in algorithms}
    assert {name: found for name, found in noted.items() if {"fail", "warn"} & found.keys()} == {}
    assert report["cves"] == []
    assert scan.returncode == 0


@each_host
def test_a_neighbour_gets_no_login(attacker: Attacker, addresses: dict[str, str], host: str) -> None:
    """Root may log in from the control node only, and passwords are off for everybody."""
    options = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
    key = ("-i", LAB.directory / "id_ed25519", "-o", "IdentitiesOnly=yes")
    for account in ("root", "postgres"):
        done = attacker.run("ssh", *options, *key, f"{account}@{addresses[host]}", "id")
        assert done.returncode == 255
        assert "Permission denied (publickey)" in done.stderr


@each_host
def test_idle_connections_of_a_neighbour_lock_no_operator_out(addresses: dict[str, str], host: str) -> None:
    """130 of them; eight operators log in at once."""
    words = [
        str(LABCTL),
        "enter",
        LAB.name,
        "attacker",
        "--",
        sys.executable,
        "-c",
        HOLD,
        addresses[host],
        "130",
    ]
    with subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == "held\n"
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(log_in, [host] * 8)) == [0] * 8
        finally:
            holder.communicate()
