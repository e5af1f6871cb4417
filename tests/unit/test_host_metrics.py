"""host_metrics counts the edge's log over restarts and reports the last entry of the history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import host_metrics
import pytest

from tests.lab import ROOT


def log_line(status: int, seconds: float, upstream: str = "200", service: str = "api") -> str:
    """Return a line of the edge's access log."""
    entry = {"service": service, "duration": seconds, "status": status, "upstream_status": upstream}
    return json.dumps(entry) + "\n"


def append(log: Path, *lines: str) -> None:
    """Add lines to a log."""
    with log.open("a") as stream:
        stream.writelines(lines)


def edge(log: Path, state: dict[str, Any], *services: str) -> host_metrics.Edge:
    """Return the counters of an edge after a restart: the state has been written and read."""
    return host_metrics.Edge(log, list(services or ("api",)), state)


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state as the next run reads it."""
    content: dict[str, Any] = json.loads(json.dumps(state))
    return content


def test_counts_continue_over_restarts(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    append(log, log_line(200, 1))
    state: dict[str, Any] = {}
    first = edge(log, state).samples()
    assert first["edge_requests_total"] == {
        f'{{service="{service}",status="{status}"}}': 0
        for service in ("", "api")
        for status in host_metrics.STATUSES
    }
    append(log, log_line(200, 0.02), log_line(200, 0.3), "not JSON\n", log_line(404, 20, "502, 504, 404"))
    state = stored(state)
    found = edge(log, state).samples()
    assert found["edge_requests_total"]['{service="api",status="200"}'] == 2
    assert found["edge_requests_total"]['{service="api",status="404"}'] == 1
    buckets = found["edge_request_duration_seconds_bucket"]
    bounds = ("0.01", "0.025", "0.5", "10.0", "+Inf")
    assert [buckets[f'{{service="api",le="{bound}"}}'] for bound in bounds] == [0, 1, 2, 2, 3]
    assert found["edge_request_duration_seconds_count"]['{service="api"}'] == 3
    assert found["edge_request_duration_seconds_sum"]['{service="api"}'] == pytest.approx(20.32)
    assert found["edge_upstream_failures_total"]['{service="api"}'] == 2
    append(log, log_line(200, 1))
    log.rename(tmp_path / "access.log.1")
    append(log, log_line(200, 1))
    append(tmp_path / "access.log.1", log_line(200, 1))
    again = edge(log, stored(state)).samples()
    assert again["edge_requests_total"]['{service="api",status="200"}'] == 5


def test_each_service_has_counts_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.touch()
    state: dict[str, Any] = {}
    counters = edge(log, state, "api", "shop")
    counters.samples()
    unknown = json.loads(log_line(421, 0.1))
    del unknown["service"]
    append(log, log_line(200, 1), log_line(502, 2, "502", "shop"), json.dumps(unknown) + "\n")
    found = counters.samples()
    requests = {key: count for key, count in found["edge_requests_total"].items() if count}
    assert requests == {
        '{service="",status="421"}': 1,
        '{service="api",status="200"}': 1,
        '{service="shop",status="502"}': 1,
    }
    assert found["edge_upstream_failures_total"] == {
        '{service=""}': 0,
        '{service="api"}': 0,
        '{service="shop"}': 1,
    }
    # A service that the edge no longer has.
    assert '{service="shop"}' not in edge(log, stored(state)).samples()["edge_upstream_failures_total"]


def test_a_sampled_line_counts_as_often_as_it_says(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.touch()
    known: dict[str, Any] = {}
    edge(log, known).samples()
    del known["services"]["api"]["limited"]  # The state of a release that did not count them.
    refused = {"limit": "REJECTED", "limit_connections": "PASSED", "weight": 100}
    counted = {"limit": "PASSED", "limit_connections": "REJECTED_DRY_RUN", "weight": 1}
    for status, fields in ((429, refused), (200, counted)):
        append(log, json.dumps(json.loads(log_line(status, 0.1)) | fields) + "\n")
    found = edge(log, known).samples()
    assert found["edge_requests_total"]['{service="api",status="429"}'] == 100
    assert found["edge_request_duration_seconds_count"]['{service="api"}'] == 101
    assert found["edge_limited_requests_total"]['{service="api",result="refused"}'] == 100
    assert found["edge_limited_requests_total"]['{service="api",result="dry_run"}'] == 1


def test_counts_of_a_release_without_services_begin_anew(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    append(log, log_line(200, 1))
    positions = {str(log.stat().st_ino): 0}
    old = {"status": {"200": 7}, "buckets": [0] * 11, "seconds": 7, "positions": positions}
    found = edge(log, old).samples()["edge_requests_total"]
    assert found['{service="api",status="200"}'] == 1


def test_a_request_that_is_not_utf_8_is_counted(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.touch()
    state: dict[str, Any] = {}
    edge(log, state).samples()
    # nginx writes the bytes of a path such as /%ff as they are.
    line = b'{"path": "/\xff", ' + log_line(404, 0.1).encode().removeprefix(b"{")
    log.write_bytes(line)
    assert edge(log, state).samples()["edge_requests_total"]['{service="api",status="404"}'] == 1


def test_releases_and_deploys_of_all_services_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_metrics, "SERVICES", tmp_path)
    monkeypatch.setattr(host_metrics, "pending_upgrades", lambda: {"security": 0, "other": 0})
    for service, result in {"api": "ok", "shop": "failed"}.items():
        home = tmp_path / service
        (home / "instances/1.0-a.1").mkdir(parents=True)
        (home / "current").symlink_to(home / "instances/1.0-a.1")
        entry = {"time": "2026-01-02T03:04:05Z", "action": "deploy", "result": result, "release": "1.0-a"}
        (home / "history.jsonl").write_text(json.dumps(entry) + "\n")
    settings = {
        "certificates": [],
        "served_names": [],
        "acme_state": "",
        "backups": "",
        "services": ["api", "new", "shop"],
        "nginx_status": "",
    }
    found = host_metrics.collect(settings, {}, None)
    assert list(found["fastmetal_release_info"]) == [
        '{service="api",release="1.0-a"}',
        '{service="shop",release="1.0-a"}',
    ]
    assert found["fastmetal_deploy_success"] == {
        '{service="api",action="deploy",release="1.0-a"}': 1,
        '{service="shop",action="deploy",release="1.0-a"}': 0,
    }


def test_text_format_describes_each_family_once() -> None:
    samples = {
        "edge_request_duration_seconds_sum": {"": 1.5},
        "edge_request_duration_seconds_count": {"": 3.0},
        "fastmetal_release_info": {host_metrics.labels(service="a", release='1"2'): 1.0},
    }
    assert host_metrics.render(samples).splitlines() == [
        "# HELP edge_request_duration_seconds Response time at the edge, from its access log.",
        "# TYPE edge_request_duration_seconds histogram",
        "edge_request_duration_seconds_sum 1.5",
        "edge_request_duration_seconds_count 3",
        "# HELP fastmetal_release_info The live release; always 1.",
        "# TYPE fastmetal_release_info gauge",
        r'fastmetal_release_info{service="a",release="1\"2"} 1',
    ]


def test_expensive_results_are_remembered_until_their_source_changes() -> None:
    calls: list[int] = []
    state: dict[str, Any] = {}

    def work() -> int:
        calls.append(1)
        return len(calls)

    assert [host_metrics.remembered(state, "key", mark, work) for mark in ("a", "a", "b")] == [1, 1, 2]


def test_runs_as_a_directory_with_its_copies(tmp_path: Path) -> None:
    """As the role installs it: in isolated mode Python adds only a directory that it runs to sys.path."""
    program = tmp_path / "host_metrics"
    program.mkdir()
    (program / "__main__.py").write_text((ROOT / "roles/exporter/files/host_metrics.py").read_text())
    for name in ("files", "follow", "history"):
        (program / f"{name}.py").write_text((ROOT / f"plugins/module_utils/{name}.py").read_text())
    done = subprocess.run(
        [sys.executable, "-I", program, tmp_path / "missing.json"],
        cwd=tmp_path,
        env={**os.environ, "STATE_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"No such file or directory: '{tmp_path}/missing.json'" in done.stderr


def test_dates_of_files_and_of_what_is_served_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "a.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=a", "-days", "10", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    asked: list[str] = []

    def answer(name: str) -> str:
        asked.append(name)
        if name == "down.test":
            raise ConnectionRefusedError
        return certificate.read_text()

    monkeypatch.setattr(host_metrics, "served_certificate", answer)
    state: dict[str, Any] = {}
    files = host_metrics.certificates([str(certificate), "/none"], state)
    starts, ends = files.values()
    label = f'{{path="{certificate}"}}'
    assert ends[label] - starts[label] == 10 * 86400
    for _ in range(3):
        found = host_metrics.served(["a.test", "down.test"], state)
    assert found == {
        "fastmetal_served_certificate_start_timestamp_seconds": {'{name="a.test"}': starts[label]},
        "fastmetal_served_certificate_expiry_timestamp_seconds": {'{name="a.test"}': ends[label]},
    }
    # A handshake a minute; one more if the minute ends during the test.
    assert asked.count("a.test") <= 2


def test_renewals_are_those_that_the_acme_client_recorded(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    assert host_metrics.renewals(file) == {}
    file.write_text(json.dumps({"api": {"failed": 2, "failures": 5, "next": 7.5, "error": "x"}}))
    assert host_metrics.renewals(file) == {
        "fastmetal_certificate_failed_attempts": {'{certificate="api"}': 2},
        "fastmetal_certificate_failures_total": {'{certificate="api"}': 5},
        "fastmetal_certificate_next_renewal_timestamp_seconds": {'{certificate="api"}': 7.5},
    }
    assert set(host_metrics.renewals(file)) < set(host_metrics.HELP)


def test_backups_are_those_that_the_role_pgbackrest_measured(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    assert host_metrics.backups(file) == {}
    known = {"time": 9.0, "faults": ["away"], "backups": {}, "spaces": {}, "drill": {}}
    file.write_text(json.dumps(known))
    assert host_metrics.backups(file) == {
        "fastmetal_backup_measured_timestamp_seconds": {"": 9.0},
        "fastmetal_backup_repository_faults": {"": 1},
        "fastmetal_backup_repository_free_bytes": {},
        "fastmetal_backup_repository_size_bytes": {},
    }
    known |= {"backups": {"1": {"last": 5, "oldest": 3, "size": 7}}, "behind_bytes": 16}
    known |= {
        "behind_seconds": 4.5,
        "spaces": {"1": {"free": 2, "size": 8}},
        "drill": {"begun": 6, "seconds": 2, "result": "failed"},
    }
    file.write_text(json.dumps(known))
    found = host_metrics.backups(file)
    assert found["fastmetal_backup_timestamp_seconds"] == {'{repository="1"}': 5}
    assert found["fastmetal_backup_archive_behind_seconds"] == {"": 4.5}
    assert found["fastmetal_restore_drill_success"] == {"": 0.0}
    assert {name for name in host_metrics.HELP if "backup" in name or "drill" in name} == set(found)
