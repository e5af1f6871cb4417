"""The lab: hosts in seconds, nothing left behind, nothing in the way of another lab."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import LABCTL, ROOT, Lab

# A server on each port of the machine that stands for the world.
LISTEN = """
import select, socket, sys
servers = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
print("ready", flush=True)
while True:
    for server in select.select(servers, [], [])[0]:
        server.accept()[0].close()
"""

# A process in no list any more while the thread that ends last gives this memory back.
BIG = """
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
    """Return what is in every name that a lab gives on this machine."""
    return hashlib.sha256(f"{ROOT}\0{lab.name}".encode()).hexdigest()[:6]


def traces(lab: Lab) -> list[str]:
    """Return whatever of a lab is on this machine: all of it carries the lab's id or its directory."""
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
    """Start bringing two hosts up, and kill that halfway."""
    command = [str(LABCTL), "up", lab.name, "--host", "a:trixie", "--host", "b:bookworm"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(seconds)
        process.kill()


def reaches(lab: Lab, host: str, address: str, port: int) -> bool:
    """Tell whether a host gets a connection."""
    command = f"timeout 0.7 bash -c '</dev/tcp/{address}/{port}' && echo yes || true"
    return "yes" in lab.ssh(host, f"{{ {command}; }} 2>/dev/null")


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    """Have both images built, which the first lab of a machine waits for."""
    lab = Lab("pytest-images")
    lab.up(a="trixie", b="bookworm")
    lab.down()


@pytest.fixture
def one() -> Iterator[Lab]:
    """A lab of the test's own, still down."""
    lab = Lab("pytest-one")
    lab.down()
    yield lab
    lab.down()


@pytest.fixture
def two() -> Iterator[Lab]:
    """Another one."""
    lab = Lab("pytest-two")
    lab.down()
    yield lab
    lab.down()


def test_up_is_quick_and_down_leaves_nothing(one: Lab, measured: list[str]) -> None:
    seconds = one.up(a="trixie")
    measured.append(f"a new lab host answered SSH after {seconds:.1f} s")
    assert seconds < 10
    assert one.ssh("a", "hostname").strip() == "a"
    found, subnet = traces(one), one.state["subnet"]
    assert len(found) > 5
    one.down()
    assert traces(one) == []
    assert subnet not in output("ip", "-4", "route")
    assert subnet not in output("nft", "list", "ruleset")


def test_up_again_changes_nothing(one: Lab) -> None:
    one.up(a="bookworm")
    booted = one.ssh("a", "cat /proc/1/stat").split()[21]
    assert output(LABCTL, "up", one.name, "--host", "a") == "unchanged\n"
    assert one.ssh("a", "cat /proc/1/stat").split()[21] == booted


@pytest.mark.parametrize("seconds", [0.1, 0.125, 0.15, 0.175, 0.2, 0.3, 0.6])
def test_recovers_from_a_killed_up(one: Lab, seconds: float) -> None:
    kill_up(one, seconds)
    one.up(a="trixie", b="bookworm")
    assert [one.ssh(host, "hostname").strip() for host in ("a", "b")] == ["a", "b"]
    one.down()
    assert traces(one) == []


def test_completes_a_network_that_a_killed_up_left_half_made(one: Lab) -> None:
    one.up(a="trixie")
    output(LABCTL, "kill", one.name, "a")
    bridge = f"fm-{lab_id(one)}"
    output("ip", "address", "flush", "dev", bridge)
    output("ip", "link", "set", bridge, "down")
    one.up(a="trixie")
    assert one.ssh("a", "hostname").strip() == "a"


def test_down_cleans_up_after_a_killed_up(one: Lab) -> None:
    with subprocess.Popen(
        [LABCTL, "up", one.name, "--host", "a:trixie"], stdout=subprocess.DEVNULL
    ) as process:
        time.sleep(0.4)
        process.kill()
    one.down()
    assert traces(one) == []


def test_two_labs_do_not_meet(one: Lab, two: Lab) -> None:
    commands = [[str(LABCTL), "up", lab.name, "--host", "a:trixie"] for lab in (one, two)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait() for process in processes] == [0, 0]
    assert one.state["subnet"] != two.state["subnet"]
    one.ssh("a", "touch /here")
    assert two.ssh("a", "ls /").split().count("here") == 0
    address = two.state["hosts"]["a"]["address"]
    assert not reaches(one, "a", address, 22)
    one.down()
    assert two.ssh("a", "hostname").strip() == "a"


def test_a_power_cut_keeps_what_was_written(one: Lab) -> None:
    one.up(a="trixie")
    one.ssh("a", "echo kept > /var/lib/kept && touch /etc/kept")
    output(LABCTL, "kill", one.name, "a")
    with pytest.raises(RuntimeError):
        one.ssh("a", "true")
    output(LABCTL, "start", one.name, "a")
    assert one.ssh("a", "cat /var/lib/kept && ls /etc/kept").split() == ["kept", "/etc/kept"]


def test_a_power_cut_waits_for_the_last_thread(one: Lab) -> None:
    one.up(a="trixie")
    for _ in range(3):
        one.ssh("a", f"systemd-run --quiet python3 -c '{BIG}' && until [ -e /run/big ]; do sleep 0.1; done")
        output(LABCTL, "kill", one.name, "a")
        output(LABCTL, "start", one.name, "a")


@pytest.fixture
def world() -> Iterator[str]:
    """A machine beyond this one, with servers on some ports, and its address."""
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


def test_forwards_web_and_names_only(one: Lab, world: str) -> None:
    one.up(a="trixie")
    assert [port for port in (22, 53, 80, 443, 5432, 8443) if reaches(one, "a", world, port)] == [80, 443]
    assert "100% packet loss" in one.ssh("a", f"ping -c1 -W1 {world} || true")
    inside = ["ip", "netns", "exec", "fmpytest", "timeout", "1", "bash", "-c"]
    address = one.state["hosts"]["a"]["address"]
    assert subprocess.run([*inside, f"</dev/tcp/{address}/22"], capture_output=True, check=False).returncode
    resolver = one.ssh("a", "cat /etc/resolv.conf")
    servers = [line.split()[1] for line in resolver.splitlines() if line.startswith("nameserver")]
    rules = output("nft", "list", "ruleset")
    assert servers
    assert all(server in rules for server in servers)
