"""Releases and rollbacks in a row, under load: clients must not notice any of them."""

from __future__ import annotations

import time
from functools import partial
from statistics import median

import pytest

from tests.lab import wait_until
from tests.load.report import Report, percentile
from tests.release.fleet import Fleet, Step

RATE = 100
QUIET_SECONDS = 12
# A new instance uses processor time before its first answer, an old one after its last.
MARGIN_SECONDS = 3


def p99(report: Report) -> float:
    """Return the 99th percentile of all requests but the long polls."""
    return percentile((sample.seconds for sample in report.samples if sample.kind != "s"), 0.99)


def switching(report: Report, step: Step, before: str) -> Report:
    """Return the part of the load in which both releases ran."""
    within = report.between(step.begun, step.ended + 5)
    new = [sample.at for sample in within.samples if sample.release == step.version]
    old = [sample.at + sample.seconds for sample in within.samples if sample.release == before]
    return report.between(min(new) - MARGIN_SECONDS, max(old) + MARGIN_SECONDS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("pairs", "requests"), [(1, 3_000), pytest.param(10, 20_000, marks=pytest.mark.soak)]
)
def test_releases_and_rollbacks_lose_nothing(
    fleet: Fleet, measured: list[str], pairs: int, requests: int
) -> None:
    """Deploy and roll back in turn, while clients read, write and hold a long poll."""
    begun, before, counted = time.time(), fleet.versions[-1], fleet.counted()
    steps: list[Step] = []
    with fleet.load("row", RATE) as load:
        time.sleep(QUIET_SECONDS)
        while len(steps) < 2 * pairs or RATE * (time.time() - begun + QUIET_SECONDS) < requests:
            steps += [fleet.deploy(), fleet.rollback()]
        time.sleep(QUIET_SECONDS)
    report = load.report
    # No counter restarts with an instance, and the last answers of an old one are counted, too.
    assert fleet.counted() - counted == sum(sample.kind == "l" for sample in report.samples)
    steady = [
        *report.between(begun, steps[0].begun).samples,
        *report.between(steps[-1].ended + MARGIN_SECONDS).samples,
    ]
    switches: list[Report] = []
    for number, step in enumerate(steps):
        after = steps[number + 1].begun if number + 1 < len(steps) else time.time()
        wrong = [s for s in report.between(step.ended, after).samples if s.release != step.version]
        assert not wrong, f"answers of another release than {step.version} after the switch: {wrong[:3]}"
        switches.append(switching(report, step, before))
        assert {s.release for s in switches[-1].samples} == {before, step.version}
        before = step.version
    quiet = p99(Report(steady))
    busy = p99(Report(sample for switch in switches for sample in switch.samples))
    deploys, rollbacks = (sorted(step.seconds for step in steps[first::2]) for first in (0, 1))
    measured += [
        f"{len(steps)} releases and rollbacks at {RATE}/s: {report.figures}",
        f"p99 {quiet * 1000:.0f} ms in quiet, {busy * 1000:.0f} ms while two releases run",
        f"deploy to two hosts {deploys[0]:.1f} to {deploys[-1]:.1f} s, median {median(deploys):.1f} s",
        f"rollback {rollbacks[0]:.1f} to {rollbacks[-1]:.1f} s, median {median(rollbacks):.1f} s",
    ]
    assert not report.failures, report.failures[:5]
    assert len(report.samples) >= requests
    assert busy <= 3 * quiet


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("repetition", range(5))
def test_seconds_on_one_host(fleet: Fleet, measured: list[str], repetition: int) -> None:
    """Deploy built code and roll back, while the edge drains the other host."""
    # The release that the row has deployed last and rolled back from.
    version = fleet.versions[-2]
    host, other = fleet.apps
    fleet.ssh(host, f"rm -r /srv/{fleet.service}/releases/{version}-*")
    fleet.ssh(fleet.edge, f"systemctl start {fleet.drain_unit(other)}")
    seconds = []
    for playbook, extra, live in (
        ("deploy", fleet.source(version), version),
        ("rollback", {}, fleet.versions[-1]),
    ):
        begun = time.time()
        run = fleet.play(playbook, "--limit", host, **extra)
        seconds.append(time.time() - begun)
        assert run.status == 0, run.output
        assert host in run.changed
        wait_until(10, partial(fleet.runs, host, live))
        # An operator who rolls back finds the old instance removed, which the next change waits for.
        time.sleep(2)
    fleet.ssh(fleet.edge, f"systemctl stop {fleet.drain_unit(other)}")
    deploy, rollback = seconds
    measured.append(f"one host, {repetition}: deploy of built code {deploy:.1f} s, rollback {rollback:.1f} s")
    # The goals are 10 and 3; a busy machine takes longer.
    assert deploy < 15
    assert rollback < 5
