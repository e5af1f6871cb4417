"""host_metrics counts the edge's log over restarts and reports the last entry of the history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import host_metrics
import pytest

from tests.lab import ROOT


def log_line(status: int, seconds: float, upstream: str = "200") -> str:
    """Return a line of the edge's access log."""
    return json.dumps({"duration": seconds, "status": status, "upstream_status": upstream}) + "\n"


def append(log: Path, *lines: str) -> None:
    """Add lines to a log."""
    with log.open("a") as stream:
        stream.writelines(lines)


def test_counts_continue_over_restarts(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    append(log, log_line(200, 1))
    state = json.loads("{}")
    first = host_metrics.Edge(log, state).samples()
    assert first["edge_requests_total"] == dict.fromkeys(
        (f'{{status="{status}"}}' for status in host_metrics.STATUSES), 0
    )
    append(log, log_line(200, 0.02), log_line(200, 0.3), "not JSON\n", log_line(404, 20, "502, 504, 404"))
    state = json.loads(json.dumps(state))
    edge = host_metrics.Edge(log, state)
    found = edge.samples()
    assert found["edge_requests_total"]['{status="200"}'] == 2
    assert found["edge_requests_total"]['{status="404"}'] == 1
    buckets = found["edge_request_duration_seconds_bucket"]
    assert [buckets[f'{{le="{bound}"}}'] for bound in ("0.01", "0.025", "0.5", "10.0", "+Inf")] == [
        *(0, 1, 2, 2, 3)
    ]
    assert found["edge_request_duration_seconds_count"] == {"": 3}
    assert found["edge_request_duration_seconds_sum"] == {"": pytest.approx(20.32)}
    assert found["edge_upstream_failures_total"] == {"": 2}
    append(log, log_line(200, 1))
    log.rename(tmp_path / "access.log.1")
    append(log, log_line(200, 1))
    append(tmp_path / "access.log.1", log_line(200, 1))
    again = host_metrics.Edge(log, json.loads(json.dumps(state))).samples()
    assert again["edge_requests_total"]['{status="200"}'] == 5


def test_a_request_that_is_not_utf_8_is_counted(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.touch()
    state = json.loads("{}")
    host_metrics.Edge(log, state).samples()
    # nginx writes the bytes of a path such as /%ff as they are.
    line = b'{"path": "/\xff", ' + log_line(404, 0.1).encode().removeprefix(b"{")
    log.write_bytes(line)
    assert host_metrics.Edge(log, state).samples()["edge_requests_total"]['{status="404"}'] == 1


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
    state = json.loads("{}")

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
