"""The files of the role exporter for several Redis instances, databases and services."""

from __future__ import annotations

import json
import shlex
from typing import Any

import yaml

from tests.roles import Role

SOCKETS = [f"unix:///run/redis-{name}/redis-server.sock" for name in ("cache", "queue")]


def drop_in(kind: str, **variables: Any) -> str:
    """Return the drop-in of an exporter's unit."""
    role = Role("exporter", ansible_managed="", **variables)
    role.templar.available_variables = {**role.templar.available_variables, "name": kind}
    return role.render("exporter.conf.j2")


def test_the_redis_exporter_has_the_password_of_each_instance() -> None:
    role = Role(
        "exporter", exporter_redis_instances=["cache", "queue"], exporter_redis_password="0123456789ab"
    )
    with_user = [socket.replace("//", "//exporter@") for socket in SOCKETS]
    content = json.loads(role.render("redis-passwords.json.j2"))
    assert content == dict.fromkeys([*SOCKETS, *with_user], "0123456789ab")


def test_the_redis_exporter_asks_the_first_instance_by_default() -> None:
    assert f"--redis.addr={SOCKETS[0]}" in drop_in("redis", exporter_redis_instances=["cache", "queue"])


def test_the_postgres_exporter_asks_each_database() -> None:
    text = drop_in("postgres", exporter_postgres_databases=["api", "shop"])
    assert "--include-databases=api,shop" in shlex.split(text.replace("\\\n", " "), comments=True)
    assert 'dbname=api"' in text


def test_only_tables_are_asked_of_each_database() -> None:
    queries = yaml.safe_load(Role("exporter", ansible_managed="").render("postgres.yml.j2"))
    assert [name for name, query in queries.items() if not query.get("master")] == ["db_table"]
    for name in ("db_table", "db_statement"):
        assert {"datname": {"usage": "LABEL", "description": "Name of the database."}} in queries[name][
            "metrics"
        ]


def test_the_probe_of_a_service_without_a_health_path_accepts_what_applications_answer() -> None:
    modules = yaml.safe_load(Role("exporter", ansible_managed="").render("blackbox.yml.j2"))["modules"]
    assert modules["site"]["http"]["valid_status_codes"] == [200]
    accepted = modules["reachable"]["http"]["valid_status_codes"]
    assert {200, 302, 401, 404} <= set(accepted)
    assert max(accepted) == 499
    assert modules["reachable"]["http"]["fail_if_not_ssl"]


def test_host_metrics_know_their_services() -> None:
    role = Role("exporter", exporter_host_services=["api"], exporter_host_edge_services=["api", "shop"])
    settings = json.loads(role.render("host-metrics.json.j2"))
    assert (settings["services"], settings["edge_services"]) == (["api"], ["api", "shop"])
