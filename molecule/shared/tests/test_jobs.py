"""Jobs run the live release in the service's sandbox, and status.yml reports failed ones."""

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from plugins.filter.release import UNITS, VERIFY, job_units

pytestmark = pytest.mark.on("app")

Run = Callable[..., subprocess.CompletedProcess[str]]
TARGET = """\
[Unit]
Description=probe

[Install]
WantedBy=multi-user.target
"""
WORKER = """\
[Unit]
PartOf=probe-workers.target

[Service]
Type=exec
ExecStart=/bin/sleep infinity

[Install]
WantedBy=probe-workers.target
"""
SCHEDULED = """\
[Service]
Type=oneshot
ExecStart=/bin/true
"""
TIMER = """\
[Timer]
OnCalendar={}

[Install]
WantedBy=timers.target
"""


@pytest.fixture
def job_prefix(variables: dict[str, Any]) -> str:
    return f"{variables['app_name']}-job-"


def worker(host: Host, variables: dict[str, Any]) -> str:
    """Return the unit of the always-on job of the live instance."""
    name = variables["app_name"]
    return f"{name}-worker-idle@{host.check_output(f'basename $(readlink /srv/{name}/current)')}.service"


def value(host: Host, unit: str, name: str) -> str:
    return str(host.check_output(f"systemctl show --value --property={name} {unit}"))


@pytest.mark.on("complete")
def test_a_worker_runs_the_live_release_in_the_sandbox(host: Host, variables: dict[str, Any]) -> None:
    unit = worker(host, variables)
    live = json.loads(host.file(f"/srv/{variables['app_name']}/current/release.json").content)["id"]
    process = f"/proc/{value(host, unit, 'MainPID')}"
    directory = host.check_output(f"readlink {process}/cwd")
    assert directory == f"/srv/{variables['app_name']}/releases/{live}/code"
    assert host.check_output(f"stat -c %U {process}") == variables["app_name"]
    environment = host.check_output(f"tr '\\0' '\\n' < {process}/environ").splitlines()
    assert f"RELEASE={live}" in environment
    assert f"ENVIRONMENT={variables['app_base_settings']['ENVIRONMENT']}" in environment
    given = host.check_output(f"ls /run/credentials/{unit}").split()
    assert sorted(given) == sorted({**variables["app_base_secrets"], **variables["app_secrets"]})


@pytest.mark.on("complete")
def test_workers_restart_by_their_target_and_after_a_kill(host: Host, variables: dict[str, Any]) -> None:
    unit = worker(host, variables)
    first = value(host, unit, "MainPID")
    host.check_output(f"systemctl try-restart {variables['app_name']}-workers.target")
    second = value(host, unit, "MainPID")
    assert second not in ("0", first)
    host.check_output(f"kill -9 {second}; sleep 6")
    assert value(host, unit, "ActiveState") == "active"
    assert value(host, unit, "MainPID") not in ("0", second)


# A job that finishes its task when it is asked to stop; it writes each step with the time and its unit.
TASK = r"""
import os, signal, sys, time
instance = open("/proc/self/cgroup").read().rpartition("@")[2].strip().removesuffix(".service")
def say(word):
    print("task", word, instance, flush=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: (say("asked"), stopped.append(1)))
say("started")
while not stopped:
    time.sleep(0.1)
time.sleep(5)
say("finished")
"""


@pytest.mark.on("complete")
def test_a_release_starts_the_new_worker_before_it_stops_the_old_one(
    host: Host, variables: dict[str, Any]
) -> None:
    name = variables["app_name"]
    release = host.check_output(f"basename $(readlink -f /srv/{name}/current/venv/..)")
    source = f"/etc/{name}/workers/idle.service"
    host.check_output("printf %s %s > /run/task.py", "%s", TASK)
    host.check_output(f"cp -a {source} /run/kept.service")
    host.check_output(f"sed -i 's|sleep infinity|python -u /run/task.py|' {source}")
    since = host.check_output("date +%s")
    try:
        old = json.loads(host.check_output(f"{name}-release switch {release}"))["instance"]
        began = float(host.check_output("date +%s.%N"))
        new = json.loads(host.check_output(f"{name}-release switch {release} --force"))["instance"]
        # The switch does not wait for the task.
        assert float(host.check_output("date +%s.%N")) - began < 12
        left = f"/etc/systemd/system/{name}-worker-idle@{old}.service"
        host.check_output(f"timeout 30 sh -c 'while [ -e {left} ]; do sleep 0.2; done'")
        lines = host.check_output(f"journalctl --since @{since} -t {name}-job-idle -o cat | grep ^task")
        assert lines.splitlines() == [
            f"task started {old}",
            f"task started {new}",
            f"task asked {old}",
            f"task finished {old}",
        ]
        assert host.service(f"{name}-worker-idle@{new}.service").is_running
    finally:
        host.check_output(f"cp -a /run/kept.service {source}")
        host.check_output(f"{name}-release switch {release}")


@pytest.mark.on("postgres")
def test_the_purge_deletes_expired_keys_only(host: Host, variables: dict[str, Any], job_prefix: str) -> None:
    assert host.service(f"{job_prefix}purge.timer").is_enabled
    assert value(host, f"{job_prefix}purge.timer", "NextElapseUSecRealtime") not in ("", "0")
    psql = f"runuser -u postgres -- psql --no-psqlrc -Atd {variables['app_name']} -c %s"
    row = "'verify', '{}', '', '/', '', now() - interval '{} hours'"
    rows = f"({row.format('old', 25)}), ({row.format('new', 1)})"
    columns = "(owner, key, fingerprint, location, body, created_at)"
    host.check_output(psql, f"INSERT INTO idempotency_keys {columns} VALUES {rows}")
    host.check_output(f"systemctl start {job_prefix}purge.service")
    left = host.check_output(psql, "DELETE FROM idempotency_keys WHERE owner = 'verify' RETURNING key")
    assert left.splitlines()[0] == "new"
    journal = host.check_output(f"journalctl --unit {job_prefix}purge.service --output cat --lines 20")
    assert re.search(r"^purged \d+$", journal, re.MULTILINE)


def test_scheduled_jobs_run_on_one_host_only(host: Host, variables: dict[str, Any], job_prefix: str) -> None:
    assert host.file(f"/etc/systemd/system/{job_prefix}purge.timer").exists == variables["app_schedule"]
    assert variables["app_schedule"] == variables["app_migrate"]


@pytest.mark.on("complete")
def test_status_reports_a_failed_job(host: Host, variables: dict[str, Any], ansible: Run) -> None:
    unit = worker(host, variables)
    drop_in = f"/run/systemd/system/{unit}.d"
    text = r"[Service]\nExecStart=\nExecStart=/bin/false\n"
    change = f"mkdir {drop_in} && printf '{text}' > {drop_in}/fail.conf && systemctl daemon-reload"
    host.check_output(f"{change} && systemctl restart {unit}; sleep 1")
    try:
        done = ansible("ansible-playbook", "playbooks/status.yml")
    finally:
        host.check_output(f"rm -r {drop_in} && systemctl daemon-reload && systemctl restart {unit}")
    assert f"{unit} is activating (auto-restart): look at" in done.stdout


@pytest.mark.on("complete")
def test_jobs_are_changed_and_removed(host: Host, ansible: Run) -> None:
    """As in the role, file_set writes and purges the units, and unit_set starts and stops them."""

    def module(name: str, **arguments: Any) -> dict[str, Any]:
        words = ("-m", f"fastmetal.metal.{name}", "-a", json.dumps(arguments))
        done = ansible("ansible", host.backend.hostname, *words)
        answer: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout.partition("=> ")[2])[0]
        return answer

    def apply(**units: str) -> dict[str, Any]:
        texts = {name.replace("__", "."): text for name, text in units.items()}
        files = [
            {"path": f"{UNITS}/probe-{name.replace('_', '-')}", "content": text, "validate": VERIFY}
            for name, text in texts.items()
        ]
        written = module("file_set", files=files, purge=[f"{UNITS}/probe-job-*"])
        if "msg" in written:
            return written
        run = module(
            "unit_set", units=job_units(files), changed_files=written["paths"], purge=["probe-job-*"]
        )
        return {"changed": written["changed"] or run["changed"]}

    def processes() -> str:
        return str(host.run("pgrep --full 'sleep infinity' --uid root").stdout)

    try:
        worker = {"workers__target": TARGET, "job_work__service": WORKER}
        assert apply(**worker)["changed"]
        first = processes()
        assert first
        assert not apply(**worker)["changed"]
        assert processes() == first
        host.check_output("systemctl stop probe-job-work.service")
        assert apply(**worker)["changed"]
        second = processes()
        assert second not in ("", first)
        changed = WORKER.replace("PartOf", "# A changed unit.\nPartOf")
        assert apply(**worker | {"job_work__service": changed})["changed"]
        assert processes() not in ("", second)
        scheduled = {"job_work__service": SCHEDULED, "job_work__timer": TIMER.format("whenever")}
        refused = apply(**scheduled)
        assert "nothing was written" in refused["msg"]
        assert "whenever" in refused["msg"]
        assert processes()
        assert apply(**scheduled | {"job_work__timer": TIMER.format("hourly")})["changed"]
        assert not processes()
        assert host.service("probe-job-work.timer").is_running
        assert not host.file(f"{UNITS}/probe-workers.target.wants/probe-job-work.service").exists
        assert not apply(**scheduled | {"job_work__timer": TIMER.format("hourly")})["changed"]
    finally:
        apply()
        assert not host.file(f"{UNITS}/probe-job-work.timer").exists
        host.check_output("systemctl disable --now --quiet probe-workers.target")
        host.check_output("rm /etc/systemd/system/probe-workers.target && systemctl daemon-reload")
    assert host.run("systemctl list-units --all --no-legend 'probe-*'").stdout == ""
