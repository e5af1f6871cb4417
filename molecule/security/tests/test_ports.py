"""What the attacker reaches: all TCP ports of each host, and the services behind them without credentials."""

from __future__ import annotations

import re
import socket
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor

from testinfra.host import Host

from tests.attacker import INSTALL, LAB, Attacker

PUBLIC = {"front1": [22, 80, 443], "back1": [22]}


def scan(*options: str, addresses: list[str]) -> dict[str, list[int]]:
    """Return the open TCP ports of each address, as nmap on the attacker finds them."""
    nmap = "nmap -n -Pn -sS -p- --min-rate 20000 --max-retries 1 -oG -"
    found = LAB.ssh("attacker", " ".join([nmap, *options, *addresses]))
    lines = re.findall(r"^Host: (\S+) .*Ports: (.*)\tIgnored", found, re.MULTILINE)
    return {address: [int(port) for port in re.findall(r"(\d+)/open/", ports)] for address, ports in lines}


def test_exactly_the_public_ports_are_open(addresses: dict[str, str], private: dict[str, str]) -> None:
    LAB.ssh("attacker", f"apt-get update -qq && {INSTALL} nmap >/dev/null")
    known = [[family[host] for host in PUBLIC] for family in (addresses, private)]
    with ThreadPoolExecutor() as pool:
        four, six = pool.submit(scan, addresses=known[0]), pool.submit(scan, "-6", addresses=known[1])
    expected = list(PUBLIC.values())
    assert [list(four.result().values()), list(six.result().values())] == [expected, expected]


def test_listening_ports_are_in_the_table(front: Host, back: Host) -> None:
    """A socket that listens on other addresses than loopback has a rule, which docs/topologies.md shows.

    Grafana's is missing, because a lab installs no Grafana.
    """
    for host, ports in ((front, {22, 80, 443, 8443, 9100}), (back, {22, 5432, 6379, 8444, 19532})):
        lines = host.check_output("ss --no-header --listening --tcp --numeric").splitlines()
        local = [line.split()[3] for line in lines]
        found = {int(address.rpartition(":")[2]) for address in local if "127.0.0.1" not in address}
        found -= {int(address.rpartition(":")[2]) for address in local if address.startswith("[::1]")}
        assert found == ports


def test_private_pages_of_the_edge_ask_for_credentials_or_do_not_exist(
    attacker: Attacker, addresses: dict[str, str]
) -> None:
    expected = {
        "/metrics": "404",
        "/health/detail": "404",
        "/api/docs": "404",
        "/prometheus/": "401",
        "/alertmanager/": "401",
    }
    status = ("curl", "--silent", "--insecure", "--output", "/dev/null", "--write-out", "%{http_code}")
    edge = f"https://{addresses['front1']}"
    assert {path: attacker.run(*status, edge + path).stdout for path in expected} == expected


def test_servers_answer_no_client_without_a_password(private: dict[str, str]) -> None:
    """The firewall admits the control node, from which this test connects."""
    context = ssl._create_unverified_context()  # noqa: S323  (whose server it is does not matter)
    back = private["back1"]
    with (
        socket.create_connection((back, 6379), timeout=5) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(b"PING\r\n")
        assert connection.recv(100).startswith(b"-NOAUTH")
    for user in ("postgres", "api", "api_owner"):
        with socket.create_connection((back, 5432), timeout=5) as plain:
            plain.sendall(struct.pack("!ii", 8, 80877103))  # SSLRequest
            assert plain.recv(1) == b"S"
            with context.wrap_socket(plain) as connection:
                names = f"user\0{user}\0database\0api\0\0".encode()
                connection.sendall(struct.pack("!ii", len(names) + 8, 3 << 16) + names)
                answer = connection.recv(9)
        # It asks for a proof of the password (SASL), or refuses the user.
        assert answer[:1] == b"E" or answer[5:] == struct.pack("!i", 10), user
