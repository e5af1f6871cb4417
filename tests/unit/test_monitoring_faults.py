"""The sentences with which the roles of monitoring refuse variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.roles import Role

SECRET = "0123456789abcdef"
FACTS = {"distribution_release": "bookworm", "installed_packages": []}
SOUND: dict[str, dict[str, Any]] = {
    "exporter": {"exporter_names": ["node", "redis"], "exporter_redis_password": SECRET},
    "logs": {
        "logs_base_files": {"/var/log/nginx/access.log": {"identifier": "nginx"}, "/var/log/x.log": None},
        "logs_sender_addresses": ["192.0.2.31", "2001:db8::/64"],
    },
    "prometheus": {
        "prometheus_base_scrape_jobs": {
            "node": {"targets": [{"address": "192.0.2.31:9100", "host": "web1", "scheme": "https"}]},
            "redis": {"targets": []},
        },
        "prometheus_base_probes": {"site": {"module": "site", "urls": ["https://www.example.com/"]}},
    },
    "alertmanager": {"alertmanager_receivers": {"team": {"webhook_configs": [{"url": "https://x/"}]}}},
    "grafana": {"grafana_admin_password": SECRET, "grafana_secret_key": SECRET},
}
TARGET = {"address": "192.0.2.31:9200", "host": "shop1"}


def jobs(**target: Any) -> dict[str, Any]:
    """Return scrape jobs with one target."""
    return {"prometheus_scrape_jobs": {"shop": {"targets": [TARGET | target]}}}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("exporter", {"exporter_names": ["node", "nodes"]}, "exporter_names has nodes: use only node, postgres"),
    ("exporter", {"exporter_arguments": {"nodes": []}}, "exporter_arguments must map exporters (node,"),
    ("exporter", {"exporter_address": "::"}, "exporter_address is ::: name one address"),
    ("exporter", {"exporter_address": "192.0.2.31"}, "exporter_address 192.0.2.31 is not loopback: set"),
    ("exporter", {"exporter_client_addresses": ["web1"]}, "exporter_client_addresses takes addresses and"),
    ("exporter", {"exporter_redis_password": "short"}, "exporter redis needs exporter_redis_password: set"),
    ("exporter", {"exporter_host_interval_seconds": 4}, "exporter_host_interval_seconds is 4: set 5 or more"),
    ("logs", {"logs_collector_address": "mon1"}, "logs_collector_address is mon1: write an IP address"),
    ("logs", {"logs_sender_addresses": ["web1"]}, "logs_sender_addresses takes addresses and networks"),
    ("logs", {"logs_listen_address": "::"}, "logs_listen_address is ::: name one address"),
    ("logs", {"logs_keep_days": 0}, "logs_keep_days is 0: set 1 or more."),
    ("logs", {"logs_max_size_mb": 200}, "logs_max_size_mb is 200: set 256 or more, as systemd fills a file"),
    ("logs", {"logs_files": {"/x": {"identifer": "x"}}}, "/x.identifer is unknown: write identifier."),
    ("logs", {"logs_files": {"/x/*": {"identifier": "x"}}}, "must be an absolute path without wildcards."),
    ("logs", {"logs_files": {"/x": {"identifier": "a b"}}}, "Each identifier in logs_files takes letters"),
    ("prometheus", {"prometheus_secrets": {"store": 123456}}, "are no strings: put store in quotes."),
    ("prometheus", {"prometheus_listen_address": "192.0.2.31:9090"}, "write a loopback address with a port"),
    ("prometheus", {"prometheus_retention_size": "5"}, "prometheus_retention_size is 5: write a size such"),
    ("prometheus", {"prometheus_retention_days": 0}, "Set prometheus_retention_days and prometheus_scrape_"),
    (
        "prometheus",
        {"prometheus_scrape_jobs": {"shop": {}}},
        "prometheus_scrape_jobs.shop.targets is missing",
    ),
    (
        "prometheus",
        {"prometheus_scrape_jobs": {"shop": {"targets": [{"address": "shop1:9200"}]}}},
        "Each target in prometheus_scrape_jobs needs an address and a host.",
    ),
    ("prometheus", jobs(address="shop1"), "Write each address in prometheus_scrape_jobs as host:port."),
    ("prometheus", jobs(scheme="ftp"), "The scheme of a target in prometheus_scrape_jobs must be http"),
    ("prometheus", {"prometheus_slo_latency_percent": 100}, "_latency_percent above 0 and below 100."),
    ("prometheus", {"prometheus_probes": {"x": {"module": "site"}}}, "prometheus_probes.x.urls is missing"),
    (
        "prometheus",
        {"prometheus_probes": {"x": {"module": "site", "urls": ["www.example.com"]}}},
        "Write each URL in prometheus_probes with http:// or https://.",
    ),
    ("prometheus", {"prometheus_secrets": {"a b": "x"}}, "Each name in prometheus_secrets takes letters"),
    ("alertmanager", {"alertmanager_listen_address": "0.0.0.0:9093"}, "write a loopback address with a port"),
    (
        "alertmanager",
        {"alertmanager_receivers": {"team": ["x"]}},
        "as a dictionary of Alertmanager's",
    ),
    ("alertmanager", {"alertmanager_receivers": {"none": {}}}, "has none, a name that the role uses: choose"),
    ("alertmanager", {"alertmanager_deadman_url": "x"}, "Write alertmanager_deadman_url with http:// or"),
    ("alertmanager", {"alertmanager_deadman_seconds": 0}, "and alertmanager_deadman_seconds to 1 or more."),
    ("grafana", {"grafana_package": "grafana_12"}, "grafana_package is grafana_12: write grafana, grafana=V"),
    ("grafana", {"grafana_package": "/x/missing.deb"}, "The control node has no file /x/missing.deb: put"),
    ("grafana", {"grafana_apt_url": "apt.example.com"}, "Write grafana_apt_url and grafana_apt_key_url with"),
    ("grafana", {"grafana_apt_key_fingerprint": "B53A"}, "Write grafana_apt_key_fingerprint as 40 digits"),
    ("grafana", {"grafana_listen_address": "::"}, "grafana_listen_address is ::: name one address"),
    ("grafana", {"grafana_listen_address": "192.0.2.31"}, "192.0.2.31 is not loopback: set grafana_tls."),
    ("grafana", {"grafana_url": "https://x/grafana"}, "grafana_url is https://x/grafana: write https:// and"),
    ("grafana", {"grafana_secret_key": "short"}, "Set grafana_admin_password and grafana_secret_key to at"),
    ("grafana", {"grafana_database_type": "postgres"}, "grafana_database_type is postgres: set"),
    ("grafana", {"grafana_prometheus_url": "127.0.0.1:9090"}, "Write grafana_prometheus_url and grafana_al"),
]


def role(name: str, variables: dict[str, Any]) -> Role:
    """Return a role with sound variables but for these."""
    return Role(name, **{"ansible_facts": FACTS} | SOUND[name] | variables)


@pytest.mark.parametrize("name", SOUND)
def test_sound_variables_are_accepted(name: str) -> None:
    assert role(name, {}).refusals() == []


@pytest.mark.parametrize("name", SOUND)
def test_an_unsupported_release_is_refused(name: str) -> None:
    (sentence,) = role(name, {"ansible_facts": FACTS | {"distribution_release": "bullseye"}}).refusals()
    assert f"The role {name} does not support bullseye: use a host with bookworm or trixie" in sentence


@pytest.mark.parametrize(
    ("name", "variables", "part"), REFUSED, ids=[f"{case[0]}: {case[2][:40]}" for case in REFUSED]
)
def test_a_fault_gets_one_sentence(name: str, variables: dict[str, Any], part: str) -> None:
    (sentence,) = role(name, variables).refusals()
    assert part in sentence
    assert sentence.endswith(".")


def test_all_faults_are_reported_at_once() -> None:
    variables = {"logs_keep_days": 0, "logs_listen_address": "::", "logs_max_size_mb": 1}
    assert len(role("logs", variables).refusals()) == 3


def test_a_package_file_on_the_control_node_is_accepted(tmp_path: Path) -> None:
    package = tmp_path / "grafana.deb"
    package.touch()
    assert role("grafana", {"grafana_package": str(package)}).refusals() == []
