"""Each of several services on one host is watched, also without metrics and with logs of text."""

from __future__ import annotations

import json
import re
import shlex
import time
import uuid
from typing import Any
from urllib.parse import quote

import pytest

from tests.apps import APPS
from tests.apps.host import HOST, Apps
from tests.lab import host_variables, play
from tests.tls import client_pair

# Asks a listener of the host as Prometheus does: with a certificate of its role, for a TLS name.
SCRAPE = """
import http.client, socket, ssl, sys, tempfile
address, port, name, path, pair = sys.argv[1:]
context = ssl.create_default_context(cafile="/etc/fastmetal/tls/ca.crt")
with tempfile.NamedTemporaryFile("w") as file:
    file.write(pair)
    file.flush()
    context.load_cert_chain(file.name)
plain = socket.create_connection((address, int(port)), timeout=10)
client = http.client.HTTPConnection(address, int(port))
client.sock = context.wrap_socket(plain, server_hostname=name or address)
client.request("GET", path)
answer = client.getresponse()
print(answer.status)
print(answer.read().decode())
"""


def scrape(apps: Apps, port: int, path: str, name: str = "") -> tuple[int, str]:
    """Return status and body of a scrape."""
    variables = host_variables(apps.inventory, HOST)
    pair = client_pair("monitoring", variables["tls_ca_certificate"], variables["tls_ca_key"])
    words = ["python3", "-c", SCRAPE, apps.address, str(port), name, path, "".join(pair)]
    status, _, body = apps.ssh(shlex.join(words)).partition("\n")
    return int(status), body


def test_the_edge_counts_the_requests_of_each_service(apps: Apps) -> None:
    def counts() -> dict[str, int]:
        apps.ssh("systemctl restart fastmetal-host-metrics.service")
        text = apps.ssh("cat /var/lib/fastmetal/metrics/host.prom")
        found = re.findall(r'^edge_requests_total\{service="(.*)",status="404"\} (\d+)$', text, re.MULTILINE)
        return {service: int(count) for service, count in found}

    before = counts()
    for _ in range(3):
        assert apps.ask("notes", f"/{uuid.uuid4().hex}").status == 404
    apps.ask("chat", f"/{uuid.uuid4().hex}")
    time.sleep(1.5)  # The log is written once a second.
    after = counts()
    assert {service: after.get(service, 0) - before.get(service, 0) for service in APPS} == {
        "board": 0,
        "chat": 1,
        "jobs": 0,
        "notes": 3,
    }


def test_the_private_listener_has_the_metrics_of_the_named_service(apps: Apps) -> None:
    assert scrape(apps, 8443, "/metrics", "jobs.internal")[0] == 200
    assert "tasks_enqueued_total" in scrape(apps, 8443, "/metrics", "jobs.internal")[1]
    # `notes` has none, and is not scraped. It refuses host names that it does not know.
    assert scrape(apps, 8443, "/metrics", "notes.internal")[0] == 400


@pytest.mark.parametrize(
    ("path", "policy"),
    [
        ("/metrics", "allkeys-lfu"),
        (f"/scrape?target={quote('unix:///run/redis-queue/redis-server.sock', safe='')}", "noeviction"),
    ],
)
def test_one_exporter_reports_the_cache_and_the_queue(apps: Apps, path: str, policy: str) -> None:
    status, text = scrape(apps, 9121, path)
    assert status == 200
    assert re.search(r"^redis_up 1$", text, re.MULTILINE)
    assert f'maxmemory_policy="{policy}"' in text
    assert re.search(r"^redis_memory_max_bytes [1-9]", text, re.MULTILINE)


def test_tables_of_every_database_are_reported(apps: Apps) -> None:
    status, text = scrape(apps, 9187, "/metrics")
    assert status == 200
    assert re.search(r"^pg_up(\{.*\})? 1$", text, re.MULTILINE)
    tables = set(re.findall(r'^db_table_size_bytes\{datname="(.*?)",name="(.*?)"', text, re.MULTILINE))
    assert {datname for datname, _ in tables} == {"board", "jobs", "notes"}
    assert ("notes", "accounts.users") in tables


def test_status_has_a_row_for_each_service(apps: Apps) -> None:
    done = play("-i", apps.inventory, "playbooks/status.yml", "-e", "status_format=json")
    assert done.status == 0, done.output
    (line,) = (line for line in done.output.splitlines() if line.startswith('{"hosts"'))
    services: dict[str, Any] = json.loads(line)["hosts"][HOST]["services"]
    assert services.keys() == set(APPS)
    for name, service in services.items():
        assert service["release"]["id"] in apps.release(name)
        assert service["workers"] > 0
        # Two of them migrate by Alembic.
        assert (service["revision"] is not None) == (name in {"board", "notes"})


def test_a_traceback_of_text_is_found_by_the_id_of_its_request(apps: Apps) -> None:
    """The application writes lines of text, and its exception several of them."""
    request_id = uuid.uuid4().hex
    rename = "runuser -u postgres -- psql --no-psqlrc -qd notes -c 'ALTER TABLE accounts.{} RENAME TO {}'"
    form = {"username": "ann", "password": "wrong"}
    apps.ssh(rename.format("users", "hidden"))
    try:
        answer = apps.ask("notes", "/api/users/login", "POST", form=form, x_request_id=request_id)
    finally:
        apps.ssh(rename.format("hidden", "users"))
    assert answer.status == 500
    time.sleep(1.5)
    shown = apps.play("logs", "notes", request_id=request_id)
    assert shown.status == 0, shown.output
    assert re.search(rf"{HOST}  nginx +POST /api/users/login 500", shown.output), shown.output
    assert "Traceback (most recent call last):" in shown.output
    assert 'relation "accounts.users" does not exist' in shown.output
    other = apps.play("logs", "chat", request_id=request_id)
    assert f"is about the request {request_id} of chat" in other.output
