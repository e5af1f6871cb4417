"""The same hosts, service and load, with releases by symlink and systemctl, as Ansistrano and Trellis do."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator

import pytest

from tests.lab import ROOT, play, wait_until
from tests.load.report import Report
from tests.release.fleet import Fleet, Step

pytestmark = pytest.mark.soak
RATE = 100
TIMES = 2
# Between switches, so that none affects the next: Nginx avoids a failed host for ten seconds.
PAUSE_SECONDS = 8
UNIT = ROOT / "tests/release/plain.service"


@pytest.fixture
def plain(fleet: Fleet) -> Iterator[None]:
    """Serve on the same path from the unit of Gunicorn's documentation, which starts the link's release."""
    unit = "/etc/systemd/system/plain.service"
    directory = fleet.directory_of(fleet.versions[-1])
    for host in fleet.apps:
        fleet.ssh(host, f"ln -sfn {directory} /srv/plain && cat > {unit} <<'E'\n{UNIT.read_text()}E")
        fleet.ssh(host, "systemctl daemon-reload && systemctl stop api.service api.socket 'api@*'")
        fleet.ssh(host, "systemctl start plain")
    yield
    for host in fleet.apps:
        fleet.ssh(host, f"systemctl stop plain && rm -f {unit} /srv/plain && systemctl daemon-reload")
        fleet.ssh(host, "systemctl start api.socket api.service")
    wait_until(20, fleet.answers)


def switch(fleet: Fleet, version: str, action: str) -> Step:
    begun = time.time()
    directory = fleet.directory_of(version)
    words = ["-e", f"directory={directory}", "-e", f"action={action}"]
    run = play("-i", fleet.inventory, "tests/release/symlink.yml", *words)
    assert run.status == 0, run.output
    return Step(version, begun, time.time())


def summary(name: str, steps: list[Step], report: Report) -> str:
    wrong = 0
    for step, after in itertools.pairwise([*steps, Step("", math.inf, math.inf)]):
        between = report.between(step.ended, after.begun).samples
        wrong += sum(sample.release not in ("", step.version) for sample in between)
    seconds = sorted(step.seconds for step in steps)
    return (
        f"{name}: {len(steps)} switches in {seconds[0]:.1f} to {seconds[-1]:.1f} s, "
        f"{len(report.failures)} of {len(report.samples)} requests lost, "
        f"{wrong} answered by the wrong release after the switch, p99 {report.figures['p99_ms']} ms, "
        f"outcomes {report.figures['outcomes']}"
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("action", ["restarted", "reloaded"])
@pytest.mark.usefixtures("plain")
def test_symlink(fleet: Fleet, measured: list[str], action: str) -> None:
    with fleet.load(f"plain-{action}", RATE) as load:
        time.sleep(PAUSE_SECONDS)
        steps = []
        for number in range(TIMES):
            steps.append(switch(fleet, fleet.versions[-2 + number % 2], action))
            time.sleep(PAUSE_SECONDS)
    measured.append(summary(f"symlink, service {action}", steps, load.report))
    assert {step.version for step in steps} <= {sample.release for sample in load.report.samples}


@pytest.mark.timeout(600)
def test_ours(fleet: Fleet, measured: list[str]) -> None:
    """The same work: a switch between two releases that are installed already."""
    with fleet.load("ours", RATE) as load:
        time.sleep(PAUSE_SECONDS)
        steps = []
        for _ in range(TIMES):
            steps.append(fleet.rollback())
            time.sleep(PAUSE_SECONDS)
    measured.append(summary("ours", steps, load.report))
    assert not load.report.failures
