"""The sites of four services: their names, headers, files and maintenance."""

from __future__ import annotations

import re
import shlex
import ssl

import pytest

from tests.apps import APPS
from tests.apps.host import Apps
from tests.lab import play

# Hosts have no curl.
ASK_SOCKET = """
import http.client, socket
connection = http.client.HTTPConnection("jobs")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("/run/jobs/jobs.sock")
connection.request("GET", "/metrics")
print(connection.getresponse().status)
"""


def test_one_certificate_carries_every_name_and_other_names_are_refused(apps: Apps) -> None:
    for service in APPS:
        with apps.site(service).connect() as connection:
            assert isinstance(connection, ssl.SSLSocket)
    assert apps.site("notes").request("/", host="stranger.test").status == 421


def test_metrics_of_a_service_are_private(apps: Apps) -> None:
    assert apps.ask("jobs", "/metrics").status == 404
    assert apps.ssh(f"python3 -c {shlex.quote(ASK_SOCKET)}") == "200"


def test_browsers_keep_hashed_files_and_ask_for_others(apps: Apps) -> None:
    (script,) = re.findall(r'src="(/assets/[^"]+)"', apps.ask("board", "/").body.decode())
    assert apps.ask("board", script).headers["Content-Type"].endswith("javascript; charset=utf-8")
    icon = apps.ask("chat", "/static/icon.svg")
    assert icon.headers["Cache-Control"] == "no-cache"
    again = apps.ask("chat", "/static/icon.svg", If_None_Match=icon.headers["ETag"])
    assert again.status == 304


@pytest.mark.timeout(120)
def test_maintenance_of_one_service_leaves_the_others(apps: Apps) -> None:
    words = ("-i", apps.inventory, "playbooks/maintenance.yml", "-e", "maintenance=on")
    for choice in ((), ("-e", "service=shop")):
        run = play(*words, *choice)
        assert run.status != 0
        assert "choose one with -e service=, " in " ".join(run.output.split())
    run = apps.play("maintenance", "notes", maintenance="on")
    assert run.status == 0, run.output
    try:
        statuses = {service: apps.ask(service, "/").status for service in APPS}
        assert {service for service, status in statuses.items() if status == 503} == {"notes"}
    finally:
        run = apps.play("maintenance", "notes", maintenance="off")
    assert run.status == 0, run.output
    assert apps.ask("notes", "/").status == 200
