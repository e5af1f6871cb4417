"""On request the edges drain a host while it switches."""

from __future__ import annotations

import json
import time

import pytest

from tests.release.fleet import Fleet

RATE = 50
# A request that the edge has sent before it sees the drain.
MARGIN_SECONDS = 0.1


def drains(fleet: Fleet, host: str, begun: float) -> list[tuple[float, float]]:
    """Return the start and the end of each drain of a host since a time."""
    since = f"--since @{begun:.0f} --output json"
    lines = fleet.ssh(fleet.edge, f"journalctl --unit {fleet.drain_unit(host)} {since}")
    at = {"Started": [], "Stopping": []}  # type: dict[str, list[float]]
    for entry in map(json.loads, lines.splitlines()):
        for word, times in at.items():
            if entry["MESSAGE"].startswith(word):
                times.append(int(entry["__REALTIME_TIMESTAMP"]) / 1e6)
    return list(zip(at["Started"], at["Stopping"], strict=True))


@pytest.mark.timeout(300)
def test_a_drained_host_gets_no_request(fleet: Fleet) -> None:
    with fleet.load("drain", RATE) as load:
        fleet.deploy(app_drain=True)
        time.sleep(3)
    assert not load.report.failures
    lines = fleet.ssh(fleet.edge, "tail -n 5000 /var/log/nginx/access.log").splitlines()
    requests = [json.loads(line) for line in lines]
    for host in fleet.apps:
        address = fleet.lab.state["hosts"][host]["address"]
        begun = [float(r["ended"]) - r["duration"] for r in requests if address in r["upstream"]]
        ((drained, back),) = drains(fleet, host, load.begun)
        assert back - drained > 1
        assert not [at for at in begun if drained + MARGIN_SECONDS < at < back - MARGIN_SECONDS]
        assert [at for at in begun if at < drained]
        assert [at for at in begun if at > back]


def test_a_drain_that_is_not_ended_expires(fleet: Fleet) -> None:
    """Its unit ends after a time and removes the directory that Nginx looks for."""
    unit = "nginx-drain@probe.service"
    fleet.ssh(
        fleet.edge, f"systemctl start {unit} && test -d /run/nginx-drain/probe && systemctl kill {unit}"
    )
    fleet.ssh(fleet.edge, f"timeout 5 sh -c 'while systemctl is-active --quiet {unit}; do sleep 0.1; done'")
    fleet.ssh(
        fleet.edge,
        f"! test -e /run/nginx-drain/probe; systemctl cat {unit} | grep -qx 'ExecStart=/usr/bin/sleep 300'",
    )
    fleet.ssh(fleet.edge, f"systemctl reset-failed {unit} || true")
