"""The filters that tell Prometheus what to watch."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from plugins.filter import monitoring
from plugins.filter.prometheus import target_labels
from tests.roles import Role

SERVICES: dict[str, dict[str, Any]] = {
    "api": {"metrics_path": "/metrics", "health_path": "/health/ready"},
    "board": {"metrics_path": "/stats", "path": "/board/", "health_path": "/healthz"},
    "notes": {"metrics_path": "", "redirect_names": ["www.notes.example"]},
}
NAMES = {"api": ["api.example"], "board": ["api.example"], "notes": ["notes.example", "*.notes.example"]}
HOSTVARS: dict[str, dict[str, Any]] = {
    "web1": {
        "__services": SERVICES,
        "__host_services": ["api", "board", "notes"],
        "__service_names": NAMES,
        "__scrape_addresses": {
            "app": "192.0.2.11:8443",
            "redis": "192.0.2.11:9121",
            "node": "192.0.2.11:9100",
        },
        "exporter_tls": True,
        "exporter_redis_instances": ["cache", "queue"],
    },
    "mon1": {
        "__services": SERVICES,
        "__host_services": ["board"],
        "__service_names": NAMES | {"api": ["api.example", "api2.example"]},
        "__scrape_addresses": {"app": "127.0.0.1:9180", "redis": "127.0.0.1:9121", "node": "127.0.0.1:9100"},
        "exporter_tls": "no",
        "exporter_redis_instances": ["cache"],
    },
}


def test_scrape_targets() -> None:
    assert monitoring.scrape_targets(["web1", "mon1"], HOSTVARS, "node") == [
        {"address": "192.0.2.11:9100", "host": "web1", "scheme": "https"},
        {"address": "127.0.0.1:9100", "host": "mon1", "scheme": "http"},
    ]


def test_services_without_metrics_are_not_scraped() -> None:
    web1 = {"address": "192.0.2.11:8443", "host": "web1", "scheme": "https"}
    assert monitoring.service_targets(["web1", "mon1"], HOSTVARS) == [
        web1 | {"labels": {"service": "api"}, "server_name": "api.internal", "path": "/metrics"},
        web1 | {"labels": {"service": "board"}, "server_name": "board.internal", "path": "/board/stats"},
        {
            "address": "127.0.0.1:9180",
            "host": "mon1",
            "scheme": "http",
            "labels": {"service": "board"},
            "path": "/board/stats",
        },
    ]


def test_each_redis_instance_is_a_target() -> None:
    web1 = {"address": "192.0.2.11:9121", "host": "web1", "scheme": "https"}
    assert monitoring.redis_targets(["web1"], HOSTVARS) == [
        web1 | {"labels": {"server": "cache"}},
        web1
        | {
            "labels": {"server": "queue"},
            "path": "/scrape",
            "params": {"target": "unix:///run/redis-queue/redis-server.sock"},
        },
    ]


def test_each_service_is_probed_through_all_its_names() -> None:
    probes = monitoring.service_probes(["web1", "mon1"], HOSTVARS)
    assert {name: (probe["module"], probe["urls"]) for name, probe in probes.items()} == {
        "site-api": ("site", [f"https://{name}/health/ready" for name in ("api.example", "api2.example")]),
        "redirect-api": ("redirect", ["http://api.example", "http://api2.example"]),
        "site-board": ("site", ["https://api.example/board/healthz"]),
        "redirect-board": ("redirect", ["http://api.example"]),
        "site-notes": ("reachable", ["https://notes.example/"]),
        "redirect-notes": ("redirect", ["http://notes.example", "http://www.notes.example"]),
        "other-names-notes": ("reachable", ["https://www.notes.example/"]),
    }
    assert {probe["labels"]["service"] for probe in probes.values()} == SERVICES.keys()


@pytest.mark.parametrize("private", ["/health", "/health/ready", "/"])
def test_a_health_path_that_edges_refuse_is_not_probed(private: str) -> None:
    services = {"api": SERVICES["api"] | {"private_paths": [private]}}
    hostvars = {
        "web1": HOSTVARS["web1"] | {"__services": services, "__service_names": {"api": ["a.example"]}}
    }
    probe = monitoring.service_probes(["web1"], hostvars)["site-api"]
    assert (probe["module"], probe["urls"]) == ("reachable", ["https://a.example/"])


def states(host: str, app_hosts: list[str], *, database: bool = False, **jobs: Any) -> dict[str, Any]:
    """Return {service: its state for status.yml} of a host."""
    services: dict[str, dict[str, Any]] = {
        "api": {"hosts": [], "database": True},
        "shop": {"hosts": ["web2"], "source": "/shop", "database": True, "jobs": {"mail": {"command": "x"}}},
        "site": {"hosts": [], "source": "/site"},
    }
    known = {"included": {"purge": {"command": "x", "schedule": "daily"}}, "all": None}
    found = monitoring.service_states(services, host, app_hosts, known | jobs, database=database)
    return {state.pop("name"): state for state in found}


def test_status_shows_the_services_of_a_host() -> None:
    web1, web2 = states("web1", ["web1", "web2"]), states("web2", ["web1", "web2"])
    assert list(web1) == ["api", "site"]
    assert list(web2) == ["api", "shop", "site"]
    # Timers are on the first host of a service.
    assert web1["api"]["units"] == ["api.socket", "api@*.service", "api-job-purge.timer"]
    assert web2["api"]["units"] == ["api.socket", "api@*.service"]
    assert web2["shop"]["units"] == ["shop.socket", "shop@*.service", "shop-worker-mail@*.service"]


def test_status_shows_the_databases_of_a_host() -> None:
    assert states("data1", ["web1", "web2"], database=True) == {
        name: {"runs": False, "database": True, "units": []} for name in ("api", "shop")
    }
    assert states("web1", ["web1"], database=True)["api"]["database"]


def test_jobs_of_the_environment_are_those_of_all_services() -> None:
    found = states("web1", ["web1"], all={"beat": {"command": "x"}})
    assert found["site"]["units"][2:] == ["site-worker-beat@*.service"]
    assert found["api"]["units"][2:] == ["api-job-purge.timer", "api-worker-beat@*.service"]


def configuration(**variables: Any) -> dict[str, Any]:
    """Return prometheus.yml."""
    content: dict[str, Any] = yaml.safe_load(Role("prometheus", **variables).render("prometheus.yml.j2"))
    return content


def test_services_of_one_job_are_verified_by_their_own_tls_names() -> None:
    targets = monitoring.service_targets(["web1", "mon1"], HOSTVARS)
    jobs = configuration(prometheus_base_scrape_jobs={"app": {"targets": targets}})["scrape_configs"]
    names = {job["job_name"]: job.get("tls_config", {}).get("server_name") for job in jobs}
    assert names == {"app": None, "app/api.internal": "api.internal", "app/board.internal": "board.internal"}
    (board,) = jobs[1]["static_configs"]
    assert board["labels"] == {
        "job": "app",
        "service": "board",
        "instance": "web1",
        "__scheme__": "https",
        "__metrics_path__": "/board/stats",
    }


def test_a_target_may_have_parameters() -> None:
    target = monitoring.redis_targets(["web1"], HOSTVARS)[1]
    assert target_labels("redis", target)["__param_target"] == "unix:///run/redis-queue/redis-server.sock"


def test_probes_are_stored_with_their_service() -> None:
    probes = monitoring.service_probes(["web1"], HOSTVARS)
    (job,) = configuration(prometheus_base_probes=probes)["scrape_configs"]
    assert job["static_configs"][0] == {
        "targets": ["https://api.example/health/ready"],
        "labels": {"service": "api", "module": "site", "__param_module": "site"},
    }
