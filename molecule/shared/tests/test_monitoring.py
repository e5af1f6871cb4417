"""Targets, rules, alerts, exporters and the status page."""

import base64
import io
import json
import re
import shlex
import socket
import ssl
import tarfile
import time
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from testinfra.backend.base import CommandResult
from testinfra.host import Host

from tests import rules
from tests.remote import fetch

PORTS = {"node": 9100, "postgres": 9187, "redis": 9121, "blackbox": 9115}  # defaults


def query_api(host: Host, variables: dict[str, Any], path: str) -> Any:
    """Return the data of a path in Prometheus' API, read from its own host."""
    return json.loads(fetch(host, f"http://{variables['prometheus_listen_address']}/api/v1/{path}"))["data"]


def wait_for_samples(host: Host, variables: dict[str, Any], query: str) -> list[dict[str, Any]]:
    """Return a query's samples; wait for the first scrapes if there are none."""
    deadline = time.monotonic() + 2 * variables["prometheus_scrape_interval_seconds"] + 10
    while True:
        samples: list[dict[str, Any]] = query_api(host, variables, f"query?query={quote(query)}")["result"]
        if samples or time.monotonic() > deadline:
            return samples
        time.sleep(1)


def expected_targets(variables: dict[str, Any]) -> set[tuple[str, str]]:
    """Return (job, instance) of every target of Prometheus."""
    scraped = {
        (name, target["host"])
        for name, job in variables["prometheus_base_scrape_jobs"].items()
        for target in job["targets"]
    }
    probes = variables["prometheus_base_probes"].values()
    return scraped | {("probe", url) for probe in probes for url in probe["urls"]}


@pytest.mark.on("monitoring")
def test_every_target_is_up(host: Host, variables: dict[str, Any]) -> None:
    deadline = time.monotonic() + 2 * variables["prometheus_scrape_interval_seconds"] + 10
    while True:
        targets = query_api(host, variables, "targets?state=active")["activeTargets"]
        down = {
            (t["labels"]["job"], t["labels"]["instance"]): t["lastError"]
            for t in targets
            if t["health"] != "up"
        }
        if not down or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert down == {}
    found = {(target["labels"]["job"], target["labels"]["instance"]) for target in targets}
    assert found == expected_targets(variables)


@pytest.mark.on("monitoring")
def test_every_rule_evaluates(host: Host, variables: dict[str, Any]) -> None:
    found = [rule for group in query_api(host, variables, "rules")["groups"] for rule in group["rules"]]
    assert len(found) > 58
    assert [(rule["name"], rule.get("lastError")) for rule in found if rule["health"] != "ok"] == []


# Queries that return samples only if the exporter has access, and the job whose hosts must have them.
QUERIES = {
    "node_memory_MemAvailable_bytes": "node",
    'node_systemd_unit_state{name="ssh.service",state="active"}==1': "node",
    "fastmetal_reboot_required": "node",
    'fastmetal_certificate_expiry_timestamp_seconds{path="/etc/fastmetal/tls/host.crt"}': "node",
    "pg_up==1": "postgres",
    "db_server_connections>0": "postgres",
    "db_transactions_blocked>=0": "postgres",
    'db_table_size_bytes{datname="api",name="products"}': "postgres",
    'count by (instance) (db_statement_seconds{datname="api"})': "postgres",
    'fastmetal_backup_timestamp_seconds{repository="1"}>0': "backups",
    "fastmetal_backup_archive_behind_seconds>=0": "backups",
    'fastmetal_backup_repository_free_bytes{repository="1"}>0': "backups",
    'redis_up{server="cache"}==1': "redis",
    "redis_memory_used_bytes>0": "redis",
    'count by (instance) (app_build_info{service="api"})': "app",
    "probe_success==1": "probe",
}


def takes_backups(variables: dict[str, Any]) -> bool:
    """Return whether a host has repositories of backups."""
    return bool(variables["exporter_host_backups"]) and not variables["pgbackrest_repository_host"]


@pytest.mark.on("monitoring")
@pytest.mark.parametrize("query", QUERIES)
def test_every_exporter_has_its_samples(
    host: Host, variables: dict[str, Any], all_variables: dict[str, dict[str, Any]], query: str
) -> None:
    expected = {name for job, name in expected_targets(variables) if job == QUERIES[query]}
    if QUERIES[query] == "backups":
        # Those of a database host may be on another one.
        watched = {name for job, name in expected_targets(variables) if job == "node"}
        expected = {name for name in watched if takes_backups(all_variables[name])}
    assert expected
    deadline = time.monotonic() + 60
    while True:
        found = {sample["metric"]["instance"] for sample in wait_for_samples(host, variables, query)}
        if expected <= found or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert expected <= found


@pytest.mark.on("edge", "complete")
def test_edge_requests_are_counted_across_a_log_rotation(host: Host) -> None:
    def requests() -> dict[str, int]:
        with host.sudo():
            host.check_output("systemctl restart fastmetal-host-metrics.service")
            text = host.file("/var/lib/fastmetal/metrics/host.prom").content_string
        lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
        return {name: int(float(value)) for name, value in lines if name.startswith("edge_requests_total")}

    def request_edge() -> None:
        script = (
            "import ssl,urllib.request as r,urllib.error as e\n"
            "context=ssl._create_unverified_context()\n"
            "try: r.urlopen('https://127.0.0.1/',context=context)\n"
            "except e.HTTPError: pass"
        )
        host.check_output(shlex.join(["python3", "-c", script]))
        time.sleep(1.5)  # The log is written once a second.

    before = requests()
    request_edge()
    with host.sudo():
        host.check_output("logrotate --force /etc/logrotate.d/nginx")
    request_edge()
    key = 'edge_requests_total{service="",status="421"}'
    assert requests().get(key, 0) == before.get(key, 0) + 2


def run_promtool(host: Host, directory: Path, expression: str | None = None) -> CommandResult:
    """Run the test cases of all alerts with the host's promtool."""
    rules.write(directory, expression)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(directory, ".")
    text = base64.b64encode(packed.getvalue()).decode()
    script = (
        f"cd $(mktemp -d) && echo {text} | base64 -d | tar -xz && promtool test rules *.test.yml; rm -r $PWD"
    )
    return host.run(script)


@pytest.mark.on("monitoring", "complete")
@pytest.mark.timeout(300)
def test_alerts_fire_and_stay_silent(host: Host, tmp_path: Path) -> None:
    done = run_promtool(host, tmp_path)
    assert "FAILED" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") >= len(rules.rule_files()) - 1


@pytest.mark.on("once")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("expression", "kind"), [("vector(1) > 1", "fires"), ("vector(1)", "silent")])
def test_alert_cases_detect_a_wrong_rule(host: Host, tmp_path: Path, expression: str, kind: str) -> None:
    """An alert that never fires, or always fires, fails its own test case."""
    expected = {
        f"{alert} {kind}"
        for name in rules.rule_files()
        for alert, case in rules.cases(name).items()
        if kind in case
    }
    done = run_promtool(host, tmp_path, expression)
    assert expected <= set(re.findall(r"name: (.+?),", done.stdout + done.stderr))


RECEIVER = """
import http.server, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with open("/run/received.jsonl", "a") as stream: stream.write(body.strip() + "\\n")
        self.send_response(200); self.end_headers()
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", 9099), Handler).serve_forever()
"""


def received(host: Host) -> set[tuple[str, str, str]]:
    """Return (alert, instance, status) of all notifications that the receiver got."""
    lines = host.check_output("cat /run/received.jsonl 2>/dev/null || true").splitlines()
    return {
        (alert["labels"]["alertname"], alert["labels"].get("instance", ""), alert["status"])
        for line in lines
        for alert in json.loads(line)["alerts"]
    }


def wait_for_alert(host: Host, alert: tuple[str, str, str], seconds: float) -> None:
    """Wait until the receiver has the notification."""
    deadline = time.monotonic() + seconds
    while alert not in (found := received(host)):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


@pytest.mark.on("monitoring", "app")
def test_an_alert_is_delivered_and_resolved(host: Host, variables: dict[str, Any]) -> None:
    name, service = host.backend.hostname, variables["app_name"]
    # Stop the socket too, or the next request would start the service.
    units = f"{service}.socket {service}.service"
    with host.sudo():
        host.check_output("rm -f /run/received.jsonl")
        host.check_output(
            shlex.join(["systemd-run", "--quiet", "--collect", "--unit=receiver", "python3", "-c", RECEIVER])
        )
        try:
            wait_for_alert(host, ("Watchdog", "", "firing"), 30)
            host.check_output(f"systemctl stop {units}")
            wait_for_alert(host, ("ServiceDown", name, "firing"), 45)
            host.check_output(f"systemctl start {units}")
            wait_for_alert(host, ("ServiceDown", name, "resolved"), 60)
        finally:
            host.check_output(f"systemctl start {units}")
            host.check_output("systemctl stop receiver.service")


@pytest.mark.on("edge")
@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/prometheus/consoles/status.html", "<h2>Hosts</h2>"),
        ("/prometheus/api/v1/query?query=vector(1)", '"success"'),
        ("/alertmanager/api/v2/status", "versionInfo"),
    ],
)
def test_monitoring_tools_require_a_password(
    host: Host, variables: dict[str, Any], path: str, content: str
) -> None:
    with host.sudo():
        context = ssl.create_default_context(cadata=host.file("/etc/fastmetal/tls/ca.crt").content_string)
    # Each of these counts as a guess, of which an account has five at once.
    for account, expected in {"": 401, "verify:verify": 200, "other:verify": 401}.items():
        token = base64.b64encode(account.encode()).decode()
        headers = {"Authorization": f"Basic {token}"} if account else {}
        # After six passwords at once, a client may try one a second.
        for _ in range(20):
            client = HTTPSConnection(variables["nginx_server_names"][0], timeout=15, context=context)
            client.request("GET", path, headers=headers)
            answer = client.getresponse()
            body = answer.read().decode()
            client.close()
            if answer.status != 429:
                break
            time.sleep(1)
        assert answer.status == expected, (account, body)
        assert (content in body) == (expected == 200)


@pytest.mark.on("monitoring")
def test_the_status_page_lists_every_host(host: Host, variables: dict[str, Any]) -> None:
    assert wait_for_samples(host, variables, "instance:node_cpu:utilisation5m")
    page = fetch(host, f"http://{variables['prometheus_listen_address']}/consoles/status.html")
    hosts = {name for job, name in expected_targets(variables) if job == "node"}
    assert hosts == set(re.findall(r'<tr><td class="good">([^<]+)</td>', page))
    assert re.search(r'<td class="n">[0-9]+ %</td>', page)
    assert re.search(r"\d+\.\d+\.\d+-[0-9a-f]{12}", page)


@pytest.mark.on("monitoring")
def test_prometheus_is_not_public(variables: dict[str, Any]) -> None:
    for name in ("prometheus_listen_address", "alertmanager_listen_address"):
        address, port = variables[name].rsplit(":", 1)
        assert address.startswith("127.") or address == "[::1]"
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection((variables["private_address"], int(port)), timeout=1)


def test_exporters_require_a_client_certificate(host: Host, variables: dict[str, Any]) -> None:
    with host.sudo():
        listening = {line.split()[3] for line in host.check_output("ss -Hltn").splitlines()}
    for name, port in (PORTS | variables["exporter_ports"]).items():
        expected = name in variables["exporter_names"]
        address = "127.0.0.1" if name == "blackbox" else variables["exporter_address"]
        assert (f"{address}:{port}" in listening) == expected, name
        assert not {f"0.0.0.0:{port}", f"*:{port}", f"[::]:{port}"} & listening, name
        if not expected:
            continue
        if address == "127.0.0.1":
            with pytest.raises(OSError, match=r"refused|timed out"):
                socket.create_connection((variables["private_address"], port), timeout=1)
            continue
        with host.sudo():
            ca = host.file(variables["nginx_ca_certificate"]).content_string
        context = ssl.create_default_context(cadata=ca)
        plain = socket.create_connection((address, port), timeout=5)
        connection = context.wrap_socket(plain, server_hostname=address)
        # With TLS 1.3, the server requires the client certificate only after the handshake.
        with connection, pytest.raises((ssl.SSLError, ConnectionError)):
            connection.recv(1)


@pytest.mark.on("postgres")
def test_the_postgres_exporter_cannot_read_tables(host: Host, variables: dict[str, Any]) -> None:
    # Only the server's own account may read the port.
    port = variables["exporter_postgres_port"]
    query = f"psql --port={port}" + " --dbname={} --no-psqlrc --tuples-only --no-align --command={}"
    database = shlex.quote(variables["exporter_postgres_databases"][0])
    with host.sudo("prometheus"):
        assert host.check_output(query.format(database, "'SELECT current_user'")) == "prometheus"
        for forbidden in ("SELECT * FROM products", "CREATE TABLE public.x (y int)", "CREATE ROLE x"):
            refused = host.run(query.format(database, shlex.quote(forbidden)))
            assert "permission denied" in refused.stderr, forbidden


@pytest.mark.on("redis")
def test_the_redis_exporter_cannot_read_keys(host: Host, variables: dict[str, Any]) -> None:
    with host.sudo():
        for command in ("GET api:x", "KEYS *", "CONFIG GET requirepass", "FLUSHALL"):
            line = f"AUTH exporter {variables['exporter_redis_password']}\n{command}\n"
            answer = host.check_output(
                f"printf %s {shlex.quote(line)} | redis-cli -s /run/redis-cache/redis-server.sock"
            )
            assert answer.splitlines()[0] == "OK"
            assert "NOPERM" in answer, command
