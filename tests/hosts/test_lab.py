"""labctl: hosts start in seconds, `down` leaves no traces, and labs are isolated from each other."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import LABCTL, ROOT, Lab, labctl

# Listens on the given ports of the host outside the lab.
LISTEN = """
import select, socket, sys
servers = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
print("ready", flush=True)
while True:
    for server in select.select(servers, [], [])[0]:
        server.accept()[0].close()
"""

# After a kill it is in no process list any more, while its last thread still frees this memory.
LARGE_PROCESS = """
import threading, time
memory = b"x" * 1_500_000_000
for _ in range(8):
    threading.Thread(target=time.sleep, args=(60,)).start()
open("/run/big", "w").close()
"""


def output(*command: str | Path) -> str:
    """Run a command and return its output."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def lab_id(lab: Lab) -> str:
    """Return the ID that all names of a lab on this machine contain."""
    return hashlib.sha256(f"{ROOT}\0{lab.name}".encode()).hexdigest()[:6]


def traces(lab: Lab) -> list[str]:
    """Return what exists of a lab on this machine: its names contain the lab's ID or its directory."""
    own = lab_id(lab)
    marks = (
        f"fm-{own}",
        f"fm{own}-",
        f"fastmetal_{own}",
        f"fastmetal-{own}",
        f"{lab.directory}/",
    )
    found = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/fastmetal-{own}")]
    found += [str(lab.directory)] if lab.directory.exists() else []
    texts = [output("ip", "-oneline", "link"), output("ip", "-4", "route"), output("nft", "list", "tables")]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            texts.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            texts += [(process / name).read_text() for name in ("mounts", "cgroup")]
    return found + [
        line for text in texts for line in text.splitlines() if any(mark in line for mark in marks)
    ]


def kill_up(lab: Lab, seconds: float) -> None:
    """Start `labctl up` with two hosts, and kill it after some seconds."""
    command = [str(LABCTL), "up", lab.name, "--host", "a:trixie", "--host", "b:bookworm"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(seconds)
        process.kill()


def reaches(lab: Lab, host: str, address: str, port: int) -> bool:
    """Return whether a host can connect to an address."""
    command = f"timeout 0.7 bash -c '</dev/tcp/{address}/{port}' && echo yes || true"
    return "yes" in lab.ssh(host, f"{{ {command}; }} 2>/dev/null")


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    """Build both images, so that no test has to wait for them."""
    lab = Lab("pytest-images")
    lab.up(a="trixie", b="bookworm")
    lab.down()


@pytest.fixture
def first_lab() -> Iterator[Lab]:
    """Return a lab without hosts, removed after the test."""
    lab = Lab("pytest-one")
    lab.down()
    yield lab
    lab.down()


@pytest.fixture
def second_lab() -> Iterator[Lab]:
    """Return a second lab without hosts, removed after the test."""
    lab = Lab("pytest-two")
    lab.down()
    yield lab
    lab.down()


def test_up_takes_seconds_and_down_leaves_no_traces(first_lab: Lab, measured: list[str]) -> None:
    seconds = first_lab.up(a="trixie")
    measured.append(f"a new lab host answered SSH after {seconds:.1f} s")
    assert seconds < 10
    assert first_lab.ssh("a", "hostname").strip() == "a"
    found, subnet = traces(first_lab), first_lab.state["subnet"]
    assert len(found) > 5
    first_lab.down()
    assert traces(first_lab) == []
    assert subnet not in output("ip", "-4", "route")
    assert subnet not in output("nft", "list", "ruleset")


def test_up_again_changes_nothing(first_lab: Lab) -> None:
    first_lab.up(a="bookworm")
    booted = first_lab.ssh("a", "cat /proc/1/stat").split()[21]
    assert output(LABCTL, "up", first_lab.name, "--host", "a") == "unchanged\n"
    assert first_lab.ssh("a", "cat /proc/1/stat").split()[21] == booted


@pytest.mark.parametrize("seconds", [0.1, 0.125, 0.15, 0.175, 0.2, 0.3, 0.6])
def test_up_recovers_from_a_killed_up(first_lab: Lab, seconds: float) -> None:
    kill_up(first_lab, seconds)
    first_lab.up(a="trixie", b="bookworm")
    assert [first_lab.ssh(host, "hostname").strip() for host in ("a", "b")] == ["a", "b"]
    first_lab.down()
    assert traces(first_lab) == []


def test_up_completes_the_network_of_a_killed_up(first_lab: Lab) -> None:
    first_lab.up(a="trixie")
    output(LABCTL, "kill", first_lab.name, "a")
    bridge = f"fm-{lab_id(first_lab)}"
    output("ip", "address", "flush", "dev", bridge)
    output("ip", "link", "set", bridge, "down")
    first_lab.up(a="trixie")
    assert first_lab.ssh("a", "hostname").strip() == "a"


def test_down_cleans_up_after_a_killed_up(first_lab: Lab) -> None:
    with subprocess.Popen(
        [LABCTL, "up", first_lab.name, "--host", "a:trixie"], stdout=subprocess.DEVNULL
    ) as process:
        time.sleep(0.4)
        process.kill()
    first_lab.down()
    assert traces(first_lab) == []


def test_two_labs_are_isolated(first_lab: Lab, second_lab: Lab) -> None:
    commands = [[str(LABCTL), "up", lab.name, "--host", "a:trixie"] for lab in (first_lab, second_lab)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait() for process in processes] == [0, 0]
    assert first_lab.state["subnet"] != second_lab.state["subnet"]
    first_lab.ssh("a", "touch /here")
    assert second_lab.ssh("a", "ls /").split().count("here") == 0
    address = second_lab.state["hosts"]["a"]["address"]
    assert not reaches(first_lab, "a", address, 22)
    first_lab.down()
    assert second_lab.ssh("a", "hostname").strip() == "a"


def test_files_survive_a_power_failure(first_lab: Lab) -> None:
    first_lab.up(a="trixie")
    first_lab.ssh("a", "echo kept > /var/lib/kept && touch /etc/kept")
    output(LABCTL, "kill", first_lab.name, "a")
    with pytest.raises(RuntimeError):
        first_lab.ssh("a", "true")
    output(LABCTL, "start", first_lab.name, "a")
    assert first_lab.ssh("a", "cat /var/lib/kept && ls /etc/kept").split() == ["kept", "/etc/kept"]


def test_a_host_that_reboots_itself_comes_back(first_lab: Lab) -> None:
    first_lab.up(a="bookworm")
    command = "touch /run/before; systemctl reboot"
    subprocess.run(["ssh", "-F", first_lab.directory / "ssh_config", "a", command], check=False)
    deadline, back = time.monotonic() + 60, ""
    while "back" not in back:
        assert time.monotonic() < deadline, "the host stayed down"
        time.sleep(0.3)
        with contextlib.suppress(RuntimeError):
            back = first_lab.ssh("a", "test -e /run/before || echo back")
    output(LABCTL, "stop", first_lab.name, "a")
    assert "stopped" in output(LABCTL, "status", first_lab.name)


def test_without_a_name_a_verb_takes_all_hosts(first_lab: Lab) -> None:
    first_lab.up(a="trixie", b="bookworm")
    output(LABCTL, "kill", first_lab.name)
    assert output(LABCTL, "status", first_lab.name).count("stopped") == 2
    output(LABCTL, "start", first_lab.name)
    assert output(LABCTL, "status", first_lab.name).count("running") == 2
    first_lab.down()
    with pytest.raises(RuntimeError, match="has no hosts: start one with"):
        labctl("start", first_lab.name)


def test_enter_gives_a_command_the_host_s_network(first_lab: Lab) -> None:
    first_lab.up(a="trixie")
    addresses = output(LABCTL, "enter", first_lab.name, "a", "--", "ip", "-brief", "address")
    assert f" {first_lab.state['hosts']['a']['address']}/" in addresses


def test_hosts_have_the_families_that_they_are_started_with(first_lab: Lab) -> None:
    first_lab.up(a="trixie:dual", b="bookworm:ipv6")
    hosts = first_lab.state["hosts"]
    assert ":" not in hosts["a"]["address"]
    assert hosts["b"]["address"] == hosts["b"]["address6"]
    for name, other in (("a", "b"), ("b", "a")):
        assert reaches(first_lab, name, hosts[other]["address6"], 22)
    assert "inet " not in first_lab.ssh("b", "ip addr show host0")
    # A host that changes its families keeps its files.
    first_lab.ssh("b", "touch /root/kept && sync")
    first_lab.up(a="trixie", b="bookworm:dual")
    assert first_lab.ssh("b", "ls /root/kept").strip() == "/root/kept"
    assert reaches(first_lab, "b", first_lab.state["hosts"]["a"]["address"], 22)


def test_kill_waits_for_the_last_thread(first_lab: Lab) -> None:
    first_lab.up(a="trixie")
    for _ in range(3):
        first_lab.ssh(
            "a",
            f"systemd-run --quiet python3 -c '{LARGE_PROCESS}' && until [ -e /run/big ]; do sleep 0.1; done",
        )
        output(LABCTL, "kill", first_lab.name, "a")
        output(LABCTL, "start", first_lab.name, "a")


@pytest.fixture
def outside_address() -> Iterator[str]:
    """Start a host outside the lab with servers on some ports, and return its address."""
    name, link, address = "fmpytest", "fmpytest0", "203.0.113.130"
    if name in output("ip", "netns"):
        output("ip", "netns", "del", name)
    with contextlib.ExitStack() as stack:
        output("ip", "netns", "add", name)
        stack.callback(output, "ip", "netns", "del", name)
        output("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        output("ip", "address", "add", "203.0.113.129/30", "dev", link)
        output("ip", "link", "set", link, "up")
        inside = ("ip", "netns", "exec", name)
        output(*inside, "ip", "address", "add", f"{address}/30", "dev", "eth0")
        output(*inside, "ip", "link", "set", "eth0", "up")
        output(*inside, "ip", "route", "add", "default", "via", "203.0.113.129")
        command = [*inside, sys.executable, "-c", LISTEN, "22", "53", "80", "443", "5432", "8443"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        stack.callback(server.wait)
        stack.callback(server.kill)
        assert server.stdout
        stack.callback(server.stdout.close)
        assert server.stdout.readline() == b"ready\n"
        yield address


def test_the_lab_forwards_http_and_dns_only(first_lab: Lab, outside_address: str) -> None:
    first_lab.up(a="trixie")
    assert [
        port for port in (22, 53, 80, 443, 5432, 8443) if reaches(first_lab, "a", outside_address, port)
    ] == [
        80,
        443,
    ]
    assert "100% packet loss" in first_lab.ssh("a", f"ping -c1 -W1 {outside_address} || true")
    inside = ["ip", "netns", "exec", "fmpytest", "timeout", "1", "bash", "-c"]
    address = first_lab.state["hosts"]["a"]["address"]
    assert subprocess.run([*inside, f"</dev/tcp/{address}/22"], capture_output=True, check=False).returncode
    resolver = first_lab.ssh("a", "cat /etc/resolv.conf")
    servers = [line.split()[1] for line in resolver.splitlines() if line.startswith("nameserver")]
    rules = output("nft", "list", "ruleset")
    assert servers
    assert all(server in rules for server in servers)
