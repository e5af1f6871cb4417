"""Dashboards are up to date with their code, complete, and query metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import yaml

from app.metrics import Metrics
from tests import rules
from tests.dashboards import load, metrics, panels, queries
from tests.lab import ROOT

BOARDS = load()
# Metrics of Debian's exporters that have the same name in both releases.
EXPORTER_METRICS = {
    *("up", "ALERTS", "probe_http_duration_seconds", "probe_ssl_earliest_cert_expiry", "probe_success"),
    *(
        f"node_{name}"
        for name in (
            *("boot_time_seconds", "cpu_seconds_total", "systemd_unit_state", "timex_offset_seconds"),
            *("uname_info", "vmstat_oom_kill"),
        )
    ),
    *("pg_database_size_bytes", "pg_locks_count", "pg_stat_activity_count", "pg_up"),
    *(
        f"pg_stat_database_{name}"
        for name in (
            *("blks_hit", "blks_read", "deadlocks", "temp_bytes", "tup_deleted", "tup_fetched"),
            *("tup_inserted", "tup_updated", "xact_commit", "xact_rollback"),
        )
    ),
    *(
        f"redis_{name}"
        for name in (
            *("commands_duration_seconds_total", "commands_processed_total", "commands_total"),
            *("blocked_clients", "connected_clients", "db_keys", "evicted_keys_total", "expired_keys_total"),
            *("keyspace_hits_total", "keyspace_misses_total", "memory_max_bytes", "memory_used_bytes"),
            *("net_input_bytes_total", "net_output_bytes_total", "rdb_changes_since_last_save"),
            *("rejected_connections_total", "up"),
            "uptime_in_seconds",
        )
    ),
}
each_board = pytest.mark.parametrize("name", BOARDS)


def known_metrics() -> set[str]:
    """Return the metrics that exist, read from the code that exports or records them."""
    known = set(EXPORTER_METRICS)
    for content in rules.rule_files().values():
        known |= {
            rule["record"] for group in content["groups"] for rule in group["rules"] if "record" in rule
        }
    variables = (ROOT / "roles/prometheus/vars/main.yml").read_text()
    known |= set(re.findall(r"record: (\S+)$", variables, re.MULTILINE))
    known |= set(re.findall(r'^    "(\w+)": \("?', host_metrics(), re.MULTILINE))
    for name, query in yaml.safe_load(
        (ROOT / "roles/exporter/templates/postgres.yml.j2").read_text()
    ).items():
        known |= {f"{name}_{metric}" for entry in query["metrics"] for metric in entry}
    for family in Metrics("none").registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        known.add(family.name + suffix)
    return known | {f"{name}_{part}" for name in known for part in ("bucket", "count", "sum")}


def host_metrics() -> str:
    """Return the source of host_metrics.py, whose metrics no exporter provides."""
    return (ROOT / "roles/exporter/files/host_metrics.py").read_text()


def unknown_metrics(board: dict[str, Any]) -> set[str]:
    """Return the metrics that a dashboard queries and that do not exist; every query must parse."""
    queried = set().union(*(metrics(query.expr) for query in queries(board, 15)))
    return queried - known_metrics()


def test_files_are_up_to_date_with_the_code() -> None:
    done = subprocess.run([sys.executable, ROOT / "roles/grafana/dashboards", "--check"], check=False)
    assert done.returncode == 0, "run `make reference`"


def test_each_board_has_one_dashboard_with_a_unique_uid() -> None:
    boards = {path.stem for path in (ROOT / "roles/grafana/dashboards/boards").glob("*.py")} - {"__init__"}
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS) == len(boards) > 1


@each_board
def test_ids_are_unique(name: str) -> None:
    ids = Counter(panel["id"] for panel in BOARDS[name]["panels"])
    assert set(ids.values()) == {1}
    for panel in panels(BOARDS[name]):
        references = [target["refId"] for target in panel["targets"]]
        assert all(references)
        assert len(set(references)) == len(references), panel["title"]


@each_board
def test_panels_are_described_and_do_not_overlap(name: str) -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in BOARDS[name]["panels"]:
        position = panel["gridPos"]
        taken.update(
            (position["x"] + x, position["y"] + y) for x in range(position["w"]) for y in range(position["h"])
        )
        assert position["x"] + position["w"] <= 24, panel["title"]
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]
    assert set(taken.values()) == {1}


@each_board
def test_datasources_are_provisioned(name: str) -> None:
    provisioned = (ROOT / "roles/grafana/templates/datasources.yml.j2").read_text()
    uids = set(re.findall(r"^    uid: (\S+)$", provisioned, re.MULTILINE))
    used = set(re.findall(r'"datasource": \{[^}]*?"uid": "([^"]*)"', json.dumps(BOARDS[name])))
    assert used
    assert used <= uids


@each_board
def test_metrics_are_known(name: str) -> None:
    assert unknown_metrics(BOARDS[name]) == set()


def test_each_renamed_metric_is_detected() -> None:
    for board in BOARDS.values():
        for metric in set().union(*(metrics(query.expr) for query in queries(board, 15))):
            renamed = re.sub(rf"(?<![\w:]){metric}(?![\w:])", f"{metric}x", json.dumps(board))
            assert f"{metric}x" in unknown_metrics(json.loads(renamed)), metric


@pytest.mark.parametrize("broken", ["rate(up)", "sum by (x) up", "up[5m", "histogram_quantile(up)"])
def test_a_broken_query_is_detected(broken: str) -> None:
    board = json.loads(json.dumps(BOARDS["overview"]))
    panels(board)[0]["targets"][0]["expr"] = broken
    with pytest.raises(ValueError, match=r"."):
        unknown_metrics(board)
