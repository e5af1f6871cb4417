"""The firewall as a neighbour of the host meets it: a network namespace with a cable to the host."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

# Documentation addresses (RFC 5737), which no rule names.
HOST, NEIGHBOUR, BEHIND = "198.51.100.1", "198.51.100.2", "203.0.113.2"
CABLE = """
set -e
ip netns add {name}
ip link add fm-{name} type veth peer name eth0 netns {name}
ip addr add {ours}/24 dev fm-{name}
ip link set fm-{name} up
ip netns exec {name} ip addr add {theirs}/24 dev eth0
ip netns exec {name} ip link set eth0 up
ip netns exec {name} ip link set lo up
ip netns exec {name} ip route add default via {ours}
"""
# Prints how many of the connections were accepted, and holds them until then.
CONNECT = """
import socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = []
for _ in range(count):
    try:
        held.append(socket.create_connection((address, port), 1))
    except ConnectionRefusedError:
        held.append(None)
    except OSError:
        break
print(sum(link is not None for link in held))
"""
LISTEN = "import socket,time; s=socket.create_server(('', {port})); time.sleep(60)"
PLAY = [{"hosts": "all", "gather_facts": False, "become": True, "roles": ["firewall"]}]


def connect(host: Host, address: str, port: int, *before: str, count: int = 1) -> int:
    """Return how many connections of a command's process are accepted."""
    command = [*before, "python3", "-c", CONNECT, address, str(port), str(count)]
    return int(host.check_output(shlex.join(command)))


def as_account(name: str) -> tuple[str, ...]:
    """Return the words that run a command as an account."""
    return (
        "setpriv",
        f"--reuid={name}",
        f"--regid={name if name != 'nobody' else 'nogroup'}",
        "--clear-groups",
    )


@pytest.fixture
def neighbour(host: Host) -> Iterator[tuple[str, ...]]:
    """Return the words that run a command on a host beside this one."""
    host.run_expect([0], CABLE.format(name="beside", ours=HOST, theirs=NEIGHBOUR))
    yield ("ip", "netns", "exec", "beside")
    host.run_expect([0], "ip netns delete beside")


@pytest.fixture
def listen(host: Host) -> Iterator[Callable[..., None]]:
    """Return a function that listens on a port of every address, after some words."""
    units: list[str] = []

    def start(port: int, *before: str) -> None:
        units.append(f"fm-listen-{port}")
        command = ["python3", "-c", LISTEN.format(port=port)]
        host.check_output(shlex.join(["systemd-run", "--collect", f"--unit={units[-1]}", *before, *command]))
        inner = shlex.join([*before, "ss", "--no-header", "-ltn"])
        host.check_output(f"timeout 5 sh -c 'until {inner} | grep -q :{port}; do sleep 0.1; done'")

    yield start
    for unit in units:
        host.run_expect([0], f"systemctl stop {unit}")


def test_a_port_without_a_rule_is_closed(
    host: Host, neighbour: tuple[str, ...], listen: Callable[..., None]
) -> None:
    listen(7777)
    assert connect(host, "127.0.0.1", 7777) == 1
    assert connect(host, HOST, 7777, *neighbour) == 0
    assert connect(host, HOST, 22, *neighbour) == 1


def test_one_address_cannot_take_all_ssh_connections(host: Host, neighbour: tuple[str, ...]) -> None:
    assert 10 <= connect(host, HOST, 22, *neighbour, count=60) <= 20
    # The next one of another address; the limits are dynamic sets of addresses.
    assert NEIGHBOUR in host.check_output("nft list set inet fastmetal ssh_rate4")


def test_a_container_engine_opens_no_port(
    host: Host, neighbour: tuple[str, ...], listen: Callable[..., None]
) -> None:
    """The rules are those that Docker writes to publish port 8080 of a container."""
    host.run_expect([0], CABLE.format(name="container", ours="203.0.113.1", theirs=BEHIND))
    published = f"""
        table ip docker {{
          chain nat {{ type nat hook prerouting priority dstnat; tcp dport 8080 dnat to {BEHIND}:8080; }}
          chain forward {{ type filter hook forward priority filter - 1; accept; }}
        }}
    """
    try:
        host.check_output("sysctl -q -w net.ipv4.ip_forward=1")
        host.check_output(f"echo {shlex.quote(published)} | nft -f -")
        listen(8080, "ip", "netns", "exec", "container")
        assert connect(host, BEHIND, 8080) == 1
        assert connect(host, HOST, 8080, *neighbour) == 0
        # A rule of the operator opens it: what firewall_rules adds to the chain.
        opened = "ct status dnat meta l4proto tcp ct original proto-dst 8080 accept"
        host.check_output(f"nft insert rule inet fastmetal forward {opened}")
        assert connect(host, HOST, 8080, *neighbour) == 1
    finally:
        host.run("systemctl reload fastmetal-firewall")
        host.run("nft delete table ip docker")
        # A change of ip_forward resets other settings.
        host.run("ip netns delete container; sysctl -q -w net.ipv4.ip_forward=0")
        host.run("systemctl restart systemd-sysctl")


def test_other_tables_stay(host: Host) -> None:
    host.check_output("nft add table inet operator")
    try:
        host.check_output("systemctl restart fastmetal-firewall")
        assert {"table inet operator", "table inet fastmetal"} <= set(
            host.check_output("nft list tables").splitlines()
        )
    finally:
        host.check_output("nft delete table inet operator")


@pytest.mark.on("complete")
def test_check_mode_shows_a_new_rule_and_loads_none(
    host: Host, ansible_on_all: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Any
) -> None:
    (tmp_path / "play.json").write_text(json.dumps(PLAY))
    variables = {"__preflight_probe": {}, "firewall_rules": {"agent": {"ports": [10050]}}}
    play = ("ansible-playbook", str(tmp_path / "play.json"), "--limit", host.backend.hostname)
    checked = ansible_on_all(*play, "--check", "--diff", "-e", json.dumps(variables))
    assert re.search(r"^\+.*dport \{ 10050 \} accept", checked.stdout, re.MULTILINE), checked.stdout
    assert "10050" not in host.check_output("nft list chain inet fastmetal services")


def test_the_rules_need_no_mount_namespace(host: Host) -> None:
    """Its setup failed in one boot of 14 on a busy machine, and the host had no firewall."""
    names = ["PrivateDevices", "PrivateTmp", "ProtectHome", "ProtectKernelTunables", "ProtectSystem"]
    shown = host.check_output(f"systemctl show fastmetal-firewall --value --property={','.join(names)}")
    assert set(shown.split()) == {"no"}
    assert host.check_output("systemctl show fastmetal-firewall --value --property=Restart") == "on-failure"


def test_debians_unit_leaves_the_rules(host: Host) -> None:
    """It empties all tables when it starts, and it stops the firewall's unit when it stops."""
    try:
        host.check_output("systemctl start nftables")
        assert "policy drop" in host.check_output("nft list chain inet fastmetal input")
    finally:
        host.check_output("systemctl stop nftables && systemctl start fastmetal-firewall")


def test_a_new_account_gets_its_rules(host: Host) -> None:
    """Accounts need not exist when the rules are loaded: packages and roles create them later."""
    rules = host.file("/etc/fastmetal/firewall.nft").content_string
    names = re.findall(r"^define uid_(\S+) ", rules, re.MULTILINE)
    name = next((name for name in names if not host.user(name).exists), "")
    if name:
        host.check_output(f"useradd --system {name}")
    else:  # Load the rules as if no account existed.
        host.check_output("cp /etc/fastmetal/firewall.nft /run/fastmetal-firewall/loaded.nft")
        host.check_output("nft --file /run/fastmetal-firewall/loaded.nft; cp -p /etc/passwd /etc/passwd.new")
        host.check_output("mv /etc/passwd.new /etc/passwd")
    try:
        uid = host.user(name or names[0]).uid
        listed = f"nft --numeric list chain inet fastmetal output | grep -qw {uid}"
        host.check_output(f"timeout 10 sh -c 'until {listed}; do sleep 0.1; done'")
    finally:
        if name:
            host.check_output(f"userdel {name}")


@pytest.mark.on("complete")
def test_rules_that_lock_ansible_out_are_rolled_back(
    host: Host,
    ansible_on_all: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Any,
    pytestconfig: pytest.Config,
) -> None:
    """Without a second connection the host rolls back to its rules."""
    before = host.file("/etc/fastmetal/firewall.nft").content_string
    (tmp_path / "play.json").write_text(json.dumps(PLAY))
    locked_out = {
        "firewall_rules": {"ssh": {"from": ["192.0.2.1"]}},
        "firewall_operator_addresses": [],
        "firewall_confirm_seconds": 8,
        "ansible_timeout": 3,
        "__preflight_probe": {},
    }
    name = host.backend.hostname
    play = ("ansible-playbook", str(tmp_path / "play.json"), "-e", json.dumps(locked_out))
    done = ansible_on_all(*play, "--limit", name)
    started = time.monotonic()
    assert done.returncode != 0
    assert "A second connection could not be opened under the new rules" in done.stdout

    def another() -> Host:
        """Return the host over a connection of its own."""
        return testinfra.get_host(f"ssh://{name}", ssh_config=pytestconfig.option.ssh_config)

    # The shared connection passes under any rules.
    while True:
        rules = another().check_output("nft list chain inet fastmetal services")
        if "192.0.2.1" not in rules:
            break
        assert time.monotonic() < started + 12, "the rules did not come back"
        time.sleep(0.5)
    assert host.file("/etc/fastmetal/firewall.nft").content_string == before


@pytest.mark.on("complete", "monitoring", "app")
def test_loopback_ports_are_for_the_accounts_that_need_them(host: Host, variables: dict[str, Any]) -> None:
    entries = variables["firewall_base_local"]
    ports = {name: entry["ports"][0] for name, entry in entries.items() if entry}
    needed = {"app", "nginx_status", "prometheus", "alertmanager", "blackbox_exporter", "node_exporter"}
    assert needed <= ports.keys()
    for name in needed:
        assert connect(host, "127.0.0.1", ports[name], *as_account("nobody")) == 0, name
        assert connect(host, "127.0.0.1", ports[name], *as_account("prometheus")) == 1, name
        assert connect(host, "127.0.0.1", ports[name]) == 1, name


@pytest.mark.on("app")
def test_a_service_reaches_only_what_it_declares(
    host: Host, variables: dict[str, Any], neighbour: tuple[str, ...], listen: Callable[..., None]
) -> None:
    """Address filters of systemd have no effect in a lab, so these attempts meet the firewall alone."""
    service = as_account(variables["app_name"])
    listen(7778, *neighbour)
    assert connect(host, NEIGHBOUR, 7778) == 1
    assert connect(host, NEIGHBOUR, 7778, *service) == 0
    assert connect(host, "127.0.0.1", 22, *service) == 0
    egress = variables["firewall_base_egress"][variables["app_name"]]["to"]
    for server in egress:
        assert connect(host, server["address"], server["ports"][0], *service) == 1
        assert connect(host, server["address"], 22, *service) == 0


# Of the scenario split: which hosts each port is open to, besides 22 of every host.
EDGES, APPS = {"edge1", "web1"}, {"web1", "web2"}
ADMITTED = {
    "edge1": {80: {"*"}, 443: {"*"}, 9100: {"mon1"}},
    "web1": {80: {"*"}, 443: {"*"}, 8443: {"edge1", "mon1"}, 9100: {"mon1"}},
    "web2": {28443: EDGES | {"mon1"}, 19100: {"mon1"}},
    # Grafana's own tables are in Postgres.
    "data1": {5433: APPS | {"mon1"}, 9100: {"mon1"}, 19187: {"mon1"}},
    "cache1": {6380: APPS, 9100: {"mon1"}, 19121: {"mon1"}},
    "mon1": {3001: EDGES, 18444: EDGES, 19532: {"*"}},
}
# Prints the places that a connection reaches; a port without a rule does not answer.
REACH = """
import asyncio, json, sys
async def reaches(address, port):
    try:
        await asyncio.wait_for(asyncio.open_connection(address, port), 2)
    except TimeoutError:
        return False
    except ConnectionRefusedError:
        pass
    return True
async def main():
    places = json.load(sys.stdin)
    found = await asyncio.gather(*(reaches(*place) for place in places))
    print(json.dumps([place for place, one in zip(places, found) if one]))
asyncio.run(main())
"""


@pytest.mark.on("fleet")
def test_each_host_reaches_exactly_the_ports_that_are_open_to_it(
    host: Host, all_variables: dict[str, dict[str, Any]]
) -> None:
    own = host.backend.hostname
    addresses = {name: known["private_address"] for name, known in all_variables.items() if name != own}
    ports = {22}.union(*ADMITTED.values())
    places = json.dumps([(address, port) for address in addresses.values() for port in ports])
    command = f"echo {shlex.quote(places)} | python3 -c {shlex.quote(REACH)}"
    found = {tuple(place) for place in json.loads(host.check_output(command))}
    assert found == {(address, 22) for address in addresses.values()} | {
        (address, port)
        for name, address in addresses.items()
        for port, clients in ADMITTED[name].items()
        if clients & {own, "*"}
    }
