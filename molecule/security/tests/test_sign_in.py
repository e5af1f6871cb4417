"""A flood of guesses denies no other user the sign-in."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

from tests.attacker import LAB, Attacker
from tests.edge import Site
from tests.load.report import percentile

SECONDS, SOURCES, RATE = 40, 36, 3
USER, PASSWORD = "flooded", "correct-horse-battery"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def sources(addresses: dict[str, str]) -> Iterator[list[str]]:
    """Give the attacker more addresses."""
    prefix = addresses["attacker"].rpartition(".")[0]
    found = [f"{prefix}.{200 + number}" for number in range(SOURCES)]
    each = "for a in {0}; do ip address {1} $a/24 dev host0; done"
    LAB.ssh("attacker", each.format(" ".join(found), "add"))
    yield found
    LAB.ssh("attacker", each.format(" ".join(found), "delete"))


def sizes(*hosts: Host) -> list[int]:
    """Return the bytes of all logs of each host."""
    return [int(host.check_output("du --summarize --bytes /var/log").split()[0]) for host in hosts]


def every(seconds: float, until: float, send: Callable[[], int]) -> tuple[list[float], Counter[int]]:
    """Call a function in equal distances; return the time of each call and {status: number}."""
    durations, statuses, due = list[float](), Counter[int](), time.monotonic()
    while due < until:
        begun = time.monotonic()
        statuses[send()] += 1
        durations.append(time.monotonic() - begun)
        due = max(due + seconds, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
    return durations, statuses


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_guesses_from_many_addresses_deny_no_sign_in(
    attacker: Attacker,
    front: Host,
    back: Host,
    addresses: dict[str, str],
    sources: list[str],
    measured: list[str],
) -> None:
    address = addresses["front1"]
    site = Site(address, address, front.file("/etc/fastmetal/tls/ca.crt").content_string, {})
    front.check_output(f"echo {PASSWORD} | api-manage user-add {USER} --scope products:write --replace")

    def sign_in() -> int:
        body = json.dumps({"username": USER, "password": PASSWORD})
        return site.request("/api/v1/auth/token", "POST", JSON, body=body).status

    def read() -> int:
        return site.request("/api/v1/products").status

    assert sign_in() == 200
    before = sizes(front, back)
    flood: list[str] = []
    words = (address, address, str(SECONDS), str(RATE), *sources)
    until = time.monotonic() + SECONDS
    results: dict[str, tuple[list[float], Counter[int]]] = {}

    def run(name: str, seconds: float, send: Callable[[], int]) -> None:
        results[name] = every(seconds, until, send)

    threads = [
        threading.Thread(target=lambda: flood.append(attacker.module("tests.sign_ins", *words))),
        threading.Thread(target=run, args=("sign_in", 1.3, sign_in)),
        threading.Thread(target=run, args=("read", 0.1, read)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (sign_ins, statuses), (reads, read_statuses) = results["sign_in"], results["read"]
    in_time = sum(seconds < 2 for seconds in sign_ins)
    pairs = zip(before, sizes(front, back), strict=True)
    grown = [(after - earlier) * 600 / SECONDS / 2**20 for earlier, after in pairs]
    measured.append(
        f"guesses {json.loads(flood[0])}; {in_time} of {len(sign_ins)} sign-ins within 2 s, {dict(statuses)};"
        f" reads p99 {percentile(reads, 0.99) * 1000:.0f} ms;"
        f" logs of 10 minutes {' and '.join(f'{size:.0f}' for size in grown)} MiB"
    )
    assert sum(json.loads(flood[0]).values()) > SECONDS * SOURCES
    assert statuses[200] >= 0.95 * len(sign_ins)
    assert in_time >= 0.95 * len(sign_ins)
    assert set(read_statuses) == {200}
    assert percentile(reads, 0.99) < 0.1
    assert max(grown) < 256
