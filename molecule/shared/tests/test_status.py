"""status.yml reports the real state of the hosts."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from testinfra.host import Host

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def status(ansible_on_all: Run) -> Callable[..., dict[str, Any]]:
    """Return a function that reads the state of hosts with status.yml, once per limit."""

    def read_once(*limit: str) -> dict[str, Any]:
        done = ansible_on_all("ansible-playbook", "playbooks/status.yml", *limit, "-e", "status_format=json")
        assert done.returncode == 0, done.stdout
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
        state: dict[str, Any] = json.loads(line)
        return state

    @cache
    def read(*limit: str) -> dict[str, Any]:
        # Alerts that the build itself has caused take a while to end.
        deadline = time.monotonic() + 120
        while (state := read_once(*limit))["problems"] and time.monotonic() < deadline:
            time.sleep(2)
        return state

    return read


@pytest.fixture(scope="module")
def fleet(limit: tuple[str, ...], status: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Return the state of the host under test and the hosts it works with."""
    return status(*limit)


def test_a_new_fleet_has_no_problems(host: Host, variables: dict[str, Any], fleet: dict[str, Any]) -> None:
    assert fleet["problems"] == []
    state = fleet["hosts"][host.backend.hostname]
    name, groups = variables["app_name"], variables["group_names"]
    assert list(state["services"]) == ([name] if {"app", "postgres"} & set(groups) else [])
    assert set(state["units"].values()) == {"active"}
    assert all(0 < days <= variables["tls_lifetime_days"] for days in state["certificates"].values())
    assert ("served" in state["certificates"]) == ("edge" in groups)
    for service in state["services"].values():
        assert (service["revision"] is not None) == ("postgres" in groups)
        assert (service["release"] is not None) == ("app" in groups)


@pytest.mark.on("app")
def test_status_reports_the_running_release_and_workers(
    host: Host, variables: dict[str, Any], fleet: dict[str, Any]
) -> None:
    state = fleet["hosts"][host.backend.hostname]["services"][variables["app_name"]]
    current = f"/srv/{variables['app_name']}/current"
    assert state["release"]["id"] == json.loads(host.file(f"{current}/release.json").content)["id"]
    assert state["release"]["since"] == pytest.approx(
        float(host.check_output(f"stat -c %Y {current}")), abs=1
    )
    assert state["workers"] == (variables["app_workers"] or int(host.check_output("nproc")))


@contextmanager
def changed(host: Host, change: str, undo: str) -> Iterator[None]:
    host.check_output(change)
    try:
        yield
    finally:
        host.check_output(undo)


@pytest.mark.on("app", "fleet")
def test_status_reports_drift_and_faults(
    host: Host, variables: dict[str, Any], ansible: Run, find_host: Callable[[str], Host]
) -> None:
    name, service = host.backend.hostname, variables["app_name"]
    home = f"/srv/{service}"
    fake = (
        f"mkdir {home}/drifted && cp -aP {home}/current {home}/kept"
        f""" && echo '{{"id": "0.0.0-drifted"}}' > {home}/drifted/release.json"""
        f" && ln -sfnT {home}/drifted {home}/current"
    )
    marks = "/etc/fastmetal/functions"
    alertmanager = f"--alertmanager.url=http://{variables['alertmanager_listen_address']}"
    alert = f"amtool {alertmanager} alert add Verify instance=fault"
    end = "--end=$(date --utc --iso-8601=seconds)"
    secret = f"/etc/{variables['app_name']}/credentials/drifted"
    entry = json.dumps(
        {"time": "2026-01-02T03:04:05Z", "action": "rollback", "result": "rolled_back", "by": "eve"}
    )
    history, lock = (
        f"{home}/history.jsonl",
        json.dumps({"by": "eve", "from": "x", "time": "2026-01-02T03:04:05Z"}),
    )
    with (
        changed(
            host, f"echo '{entry}' >> {history}", f"sed -i '$d' {history}; [ -s {history} ] || rm {history}"
        ),
        changed(
            host,
            f"echo '{lock}' > /run/{variables['app_name']}/deploy.lock",
            f"rm /run/{variables['app_name']}/deploy.lock",
        ),
        changed(host, fake, f"mv -T {home}/kept {home}/current && rm -r {home}/drifted"),
        changed(host, f"touch {secret}", f"rm {secret}"),
        changed(
            host,
            "systemd-run --quiet --unit=verify-fault false; sleep 0.5",
            "systemctl reset-failed verify-fault.service",
        ),
        changed(
            host,
            f"cp {marks}/app.json {marks}/redis.json"
            " && systemd-run --quiet --unit=redis-server@cache.service sleep infinity",
            f"systemctl stop redis-server@cache.service; rm {marks}/redis.json",
        ),
        changed(find_host("monitoring"), f"{alert} --annotation=summary=Verifying", f"{alert} {end}"),
    ):
        done = ansible("ansible-playbook", "playbooks/status.yml", "-e", "status_strict=true")
    assert done.returncode != 0
    assert f"The live release of {service} differs: " in done.stdout
    assert f"{name} has 0.0.0-drifted" in done.stdout
    assert f"The configuration of {service} differs between " in done.stdout
    assert f"{name}: release 0.0.0-drifted of {service} is current, but it does not run." in done.stdout
    assert re.search(rf"^{name} .* rollback rolled_back by eve, 2026-01-0", done.stdout, re.MULTILINE)
    assert f"{name}: {service} is locked by eve from x since 2026-01-0" in done.stdout
    assert f"{name}: the last rollback of {service}, 2026-01-0" in done.stdout
    assert (
        f"{name}: the role redis is left from before and belongs to no group: remove it with" in done.stdout
    )
    assert "`systemctl disable --now redis-server@cache.service` and `rm " in done.stdout
    assert "fault: alert Verify since " in done.stdout
    assert f"{name}: verify-fault.service is failed (failed): look at" in done.stdout
