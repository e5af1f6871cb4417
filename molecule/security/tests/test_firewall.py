"""What the attacker takes from others: connections, before a byte is sent."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from testinfra.host import Host

from tests.attacker import Attacker

# Says whether a connection is dropped: a port without a rule does not answer.
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)
    print("connected")
except TimeoutError:
    print("dropped")
except OSError as error:
    print(error)
"""


def test_servers_do_not_see_the_attacker(
    attacker: Attacker, private: dict[str, str], front: Host, back: Host
) -> None:
    """260 idle connections closed Postgres to everybody, 10,200 closed Redis."""
    for host, port in ((back, 5432), (back, 6379), (back, 19532), (front, 8443), (front, 9100)):
        name = host.backend.hostname
        assert f":{port} " in host.check_output("ss --no-header --listening --tcp --numeric")
        done = attacker.run(sys.executable, "-c", CONNECT, private[name], str(port))
        assert done.stdout == "dropped\n", (name, port)


# Opens connections, says nothing on them, and prints how many were accepted once their time is over.
SILENT = """
import socket, sys, time
held = []
for _ in range(int(sys.argv[3])):
    try:
        held.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), 1))
    except ConnectionRefusedError:
        pass
time.sleep(6)
print(len(held))
"""


def test_silent_connections_of_an_admitted_host_leave_room_for_operators(
    front: Host, back: Host, private: dict[str, str]
) -> None:
    """260 of them closed Postgres to everybody."""
    words = ["python3", "-c", SILENT, private["back1"], "5432", "260"]
    with ThreadPoolExecutor(1) as pool:
        attack = pool.submit(front.check_output, shlex.join(words))
        count = "ss --no-header --tcp --numeric state established sport = :5432 | wc -l"
        back.check_output(f"timeout 5 sh -c 'until [ $({count}) -gt 10 ]; do sleep 0.1; done'")
        begun = time.monotonic()
        assert back.check_output("runuser --user postgres -- psql -Atc 'SELECT 1'") == "1"
        assert time.monotonic() - begun < 1.5
        accepted = int(attack.result())
    assert (
        0 < accepted < int(back.check_output("runuser --user postgres -- psql -Atc 'SHOW max_connections'"))
    )


def reached(host: Host, command: str, places: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return to which addresses and ports a command's process can connect."""
    connect = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
    return {
        (address, port)
        for address, port in places
        if host.run(f"{command} python3 -c '{connect}' {address} {port}").rc == 0
    }


def test_outbound_connections_are_closed(front: Host, private: dict[str, str]) -> None:
    """A host reaches what admits it, and SSH of no host; a service only what it needs."""
    back, attacker = private["back1"], private["attacker"]
    servers, others = {(back, 5432), (back, 6379)}, {(back, 22), (attacker, 22)}
    logs, own = (back, 19532), (private["front1"], 443)
    places = servers | others | {logs, own}
    assert reached(front, "env", places) == servers | {logs, own}
    assert reached(front, "setpriv --reuid=api --regid=api --clear-groups", places) == servers


def test_nobody_reaches_the_console_ports(back: Host) -> None:
    """An unprivileged process could silence every alert, and reach the service past the edge."""
    connect = 'import socket,sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)'
    for port in (9090, 9093, 9115):
        for account, reaches in (("nobody", False), ("prometheus", True)):
            command = (
                f"setpriv --reuid={account} --regid=nogroup --clear-groups python3 -c '{connect}' {port}"
            )
            assert (back.run(command).rc == 0) is reaches, (port, account)


# Prints the senders of VRRP packets.
HEAR = """
import socket, time
link = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)
link.settimeout(4)
until = time.monotonic() + 4
try:
    while time.monotonic() < until:
        print(link.recvfrom(100)[1][0], flush=True)
except TimeoutError:
    pass
"""
ADVERTISE = """
import socket, sys, time
link = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)
for _ in range(15):
    link.sendto(bytes([0x31]) + bytes(19), (sys.argv[1], 0))
    time.sleep(0.2)
"""


def test_vrrp_is_heard_from_peers_only(
    attacker: Attacker, front: Host, back: Host, addresses: dict[str, str]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        heard = pool.submit(back.check_output, shlex.join(["python3", "-c", HEAR]))
        peer = pool.submit(front.check_output, shlex.join(["python3", "-c", ADVERTISE, addresses["back1"]]))
        assert attacker.run(sys.executable, "-c", ADVERTISE, addresses["back1"]).returncode == 0
        peer.result()
    assert set(heard.result().split()) == {addresses["front1"]}


# Sends an echo request and a timestamp request, and prints the types of the answers.
ICMP = """
import socket, sys, time
address = sys.argv[1]
if ":" in address:
    link, requests = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58), ["8000000000000000"]
else:
    link = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
    requests = ["0800f7ff00000000", "0d00f2ff" + "0" * 32]
for request in requests:
    link.sendto(bytes.fromhex(request), (address, 0))
link.settimeout(1)
try:
    while True:
        data, source = link.recvfrom(100)
        if source[0] == address:
            print(data[0 if ":" in address else 20])
except TimeoutError:
    pass
"""


def test_hosts_answer_pings_and_no_other_question(
    attacker: Attacker, addresses: dict[str, str], private: dict[str, str]
) -> None:
    four = attacker.run(sys.executable, "-c", ICMP, addresses["front1"]).stdout.split()
    six = attacker.run(sys.executable, "-c", ICMP, private["front1"]).stdout.split()
    assert (four, "129" in six) == (["0"], True)
