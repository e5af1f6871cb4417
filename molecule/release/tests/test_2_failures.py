"""A failure at each step of a release.

Each time the service stays up, every host ends on the old release, and the next deploy works.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.lab import labctl
from tests.release.faults import deploying, small_disk, transaction, unreachable
from tests.release.fleet import Fleet
from tests.release.receiver import receiving

pytestmark = pytest.mark.timeout(600)
RATE = 20
SWITCH = "Switch to the release as a canary"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("crashes at import", "built to crash"),
        ("never gets ready", "did not get ready"),
        ("migration fails", "division by zero"),
    ],
)
def test_a_bad_release_never_serves(fleet: Fleet, fault: str, says: str) -> None:
    old = fleet.versions[-1]
    with fleet.load(fault.replace(" ", "-"), RATE) as load:
        bad = fleet.build(fault)
        run = fleet.play("deploy", **bad, app_start_timeout=10)
        fleet.check_rolled_back(run, says)
        fleet.redeploy()
    assert not load.report.failures
    assert {sample.release for sample in load.report.samples} == {old, fleet.versions[-1]}
    assert not fleet.ran("web2", Path(bad["app_source"]).name)


@pytest.mark.parametrize(
    ("fault", "says", "seen"),
    [
        ("loses writes", "The release's check failed: POST", ["web1"]),
        ("fails behind the edge", "The check through the edge failed", ["web1", "web2"]),
    ],
)
def test_a_release_that_fails_its_check_is_rolled_back(
    fleet: Fleet, fault: str, says: str, seen: list[str]
) -> None:
    """Only serving shows the fault, so the bad release's own answers are the clients' only loss."""
    with receiving() as (receivers, events), fleet.load(fault.replace(" ", "-"), RATE) as load:
        bad = fleet.build(fault)
        version = Path(bad["app_source"]).name
        run = fleet.play("deploy", **bad, release_notify=receivers)
        fleet.check_rolled_back(run, says)
        assert [event["event"] for event in events] == ["started", "rolled_back"]
        assert says in events[-1]["reason"]
        rolled_back = time.time()
        time.sleep(3)
    # A fault that the first host shows stays there: the second batch never begins.
    assert [host for host in fleet.apps if fleet.ran(host, version)] == seen
    assert {sample.release for sample in load.report.failures} <= {version}
    assert not load.report.between(rolled_back).failures
    assert {sample.release for sample in load.report.between(rolled_back).samples} == {fleet.versions[-1]}
    with receiving() as (receivers, events):
        fleet.redeploy(release_notify=receivers)
    assert [event["event"] for event in events] == ["started", "finished"]
    assert events[-1]["release"].startswith(f"{fleet.versions[-1]}-")
    assert events[-1]["hosts"] == list(fleet.apps)


def test_a_migration_behind_a_lock_gives_up(fleet: Fleet) -> None:
    """A reader's transaction stays open; no request may queue behind the migration for long."""
    with fleet.load("lock", RATE) as load, transaction(fleet, "SELECT 1 FROM products LIMIT 1"):
        run = fleet.play("deploy", **fleet.build("migration waits behind a held lock"))
        fleet.check_rolled_back(run, "lock")
    fleet.redeploy()
    assert not load.report.failures
    assert max(sample.seconds for sample in load.report.samples if sample.kind != "s") < 2


def test_a_host_that_loses_power_in_the_second_batch(fleet: Fleet) -> None:
    with fleet.load("power", RATE) as load:
        with deploying(fleet, fleet.build()) as deploy:
            deploy.wait_for(SWITCH, times=2)
            labctl("kill", fleet.lab.name, "web2")
            lost = time.time()
        assert fleet.live_on("web1") == fleet.versions[-1]
        labctl("start", fleet.lab.name, "web2")
        fleet.wait_until_live(20)
        fleet.check_rolled_back(deploy.wait(), "web2")
        fleet.redeploy()
    # In-flight requests are lost with the host, and a POST is never sent twice.
    assert load.report.outage < 5
    assert not load.report.between(lost + 5).failures


def test_a_boot_forgets_the_canary_and_the_lock(fleet: Fleet) -> None:
    metadata = json.dumps({"run": "cut", "by": "alice", "from": "desk", "action": "deploy"})
    release = Path(fleet.directory_of(fleet.versions[-2])).name
    fleet.ssh("web1", f"api-release lock --metadata '{metadata}'")
    fleet.ssh("web1", f"api-release switch {release} --promote-within 600 --metadata '{metadata}'")
    assert json.loads(fleet.ssh("web1", "api-release status"))["canary"]
    labctl("kill", fleet.lab.name, "web1")
    labctl("start", fleet.lab.name, "web1")
    fleet.wait_until_live(20)
    assert not json.loads(fleet.ssh("web1", "api-release status"))["lock"]


def test_a_disk_that_fills_up_while_the_release_is_installed(fleet: Fleet) -> None:
    with fleet.load("disk", RATE) as load, small_disk(fleet, "web1") as fill:
        with deploying(fleet, fleet.build()) as deploy:
            deploy.wait_for("Install the release")
            fill()
        fleet.check_rolled_back(deploy.wait(), "No space left")
    fleet.redeploy()
    assert not load.report.failures


@pytest.mark.parametrize(
    ("how", "task", "batch"),
    [
        (signal.SIGINT, "Install the release", 1),
        (signal.SIGINT, SWITCH, 1),
        (signal.SIGINT, SWITCH, 2),
        (signal.SIGKILL, SWITCH, 2),
    ],
)
def test_a_run_that_ends_in_the_middle(fleet: Fleet, how: signal.Signals, task: str, batch: int) -> None:
    """By Ctrl-C or SIGKILL: the lock stays and names its holder, and canaries roll back."""
    with fleet.load(f"{how.name}-{task.split()[0]}-{batch}", RATE) as load:
        # Long enough for the next run to find the lock.
        with deploying(fleet, fleet.build(), app_promote_timeout_seconds=30) as deploy:
            deploy.wait_for(task, times=batch)
            deploy.end(how)
        time.sleep(2)
        refused = fleet.play("deploy", **fleet.build())
        assert refused.status
        assert "app_break_lock" in refused.output
        fleet.wait_until_live(60)
        fleet.redeploy(app_break_lock=True)
    assert not load.report.failures


def test_a_control_node_that_loses_its_network(fleet: Fleet) -> None:
    with fleet.load("network", RATE) as load:
        with deploying(fleet, fleet.build(), app_promote_timeout_seconds=12) as deploy:
            deploy.wait_for(SWITCH, times=2)
            with unreachable(fleet):
                deploy.wait()
        fleet.wait_until_live(40)
        fleet.check_rolled_back(deploy.wait(), "reached")
        fleet.redeploy(app_break_lock=True)
    assert not load.report.failures
