"""What Prometheus and the exporters do."""

import json
import shlex
import socket
import ssl
import time
from typing import Any

import pytest
from testinfra.host import Host


def ask(host: Host, variables: dict[str, Any], path: str) -> Any:
    """Ask Prometheus from its own host, which need not have curl."""
    script = "import sys,urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode())"
    url = f"http://{variables['prometheus_listen_address']}/api/v1/{path}"
    return json.loads(host.check_output(shlex.join(["python3", "-c", script, url])))["data"]


def wait_for_samples(host: Host, variables: dict[str, Any], query: str) -> list[dict[str, Any]]:
    """Return a query's samples, waiting for as long as the first scrapes may take."""
    deadline = time.monotonic() + 2 * variables["prometheus_scrape_interval_seconds"] + 10
    while True:
        samples: list[dict[str, Any]] = ask(host, variables, f"query?query={query}")["result"]
        if samples or time.monotonic() > deadline:
            return samples
        time.sleep(1)


@pytest.mark.on("monitoring")
def test_every_target_is_up(host: Host, variables: dict[str, Any]) -> None:
    wanted = {
        (job["name"], target["host"])
        for job in variables["prometheus_scrape_jobs"]
        for target in job["targets"]
    }
    deadline = time.monotonic() + 2 * variables["prometheus_scrape_interval_seconds"] + 10
    while True:
        targets = ask(host, variables, "targets?state=active")["activeTargets"]
        down = {
            (t["labels"]["job"], t["labels"]["instance"]): t["lastError"]
            for t in targets
            if t["health"] != "up"
        }
        if not down or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert down == {}
    assert wanted <= {(target["labels"]["job"], target["labels"]["instance"]) for target in targets}


@pytest.mark.on("monitoring")
def test_node_metrics_are_collected(host: Host, variables: dict[str, Any]) -> None:
    nodes = {
        target["host"]
        for job in variables["prometheus_scrape_jobs"]
        for target in job["targets"]
        if job["name"].startswith("node")
    }
    assert nodes
    for metric in ("node_memory_MemAvailable_bytes", "node_filesystem_avail_bytes", "node_cpu_seconds_total"):
        samples = wait_for_samples(host, variables, metric)
        assert nodes <= {sample["metric"]["instance"] for sample in samples}, metric


@pytest.mark.on("monitoring")
def test_every_job_yields_samples(host: Host, variables: dict[str, Any]) -> None:
    wanted = {job["name"] for job in variables["prometheus_scrape_jobs"]}
    found = {
        sample["metric"]["job"] for sample in wait_for_samples(host, variables, "scrape_samples_scraped>0")
    }
    assert wanted <= found


@pytest.mark.on("monitoring")
def test_prometheus_is_not_public(variables: dict[str, Any]) -> None:
    address, port = variables["prometheus_listen_address"].rsplit(":", 1)
    assert address.startswith("127.") or address == "[::1]"
    with pytest.raises(OSError, match=r"refused|timed out"):
        socket.create_connection((variables["private_address"], int(port)), timeout=5)


def test_exporter_is_closed_to_strangers(host: Host, variables: dict[str, Any]) -> None:
    address, port = variables["exporter_listen_address"].rsplit(":", 1)
    with host.sudo():
        listening = {line.split()[3] for line in host.check_output("ss -Hltn").splitlines()}
    assert variables["exporter_listen_address"] in listening
    assert not {f"0.0.0.0:{port}", f"*:{port}", f"[::]:{port}"} & listening
    if not variables["exporter_tls"]:
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection((variables["private_address"], int(port)), timeout=5)
        return
    with host.sudo():
        context = ssl.create_default_context(
            cadata=host.file(variables["exporter_tls_ca_certificate"]).content_string
        )
    plain = socket.create_connection((address, int(port)), timeout=5)
    connection = context.wrap_socket(plain, server_hostname=address)
    # TLS 1.3 tells only at the first read that it wants a certificate.
    with connection, pytest.raises((ssl.SSLError, ConnectionError)):
        connection.recv(1)


@pytest.mark.parametrize(
    "unit", [pytest.param("prometheus", marks=pytest.mark.on("monitoring")), "prometheus-node-exporter"]
)
def test_units_are_sandboxed(host: Host, unit: str) -> None:
    with host.sudo():
        assert host.run(f"systemd-analyze security --threshold=20 {unit}.service").rc == 0
