"""The status page of Prometheus, through the edge, in Chromium."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import ssl
import subprocess
import time
from collections.abc import Callable
from html.parser import HTMLParser
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from testinfra.host import Host

from tests.remote import fetch

NO_VALUE = "\N{EN DASH}"
NONE = "no service"
PAGE = "/prometheus/consoles/status.html"
# Screenshot of a fleet with faults; docs/status.png is a copy of one.
SCREENSHOT = Path(__file__).resolve().parents[3] / ".lab/status.png"


class Page(HTMLParser):
    """The texts of a rendered page, with the CSS classes that colour them."""

    def __init__(self, dom: str) -> None:
        """Parse the page."""
        super().__init__()
        self.parts: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Start an element, a table or a row."""
        if tag in {"p", "h1", "h2", "td", "th"}:
            self.parts.append((tag, dict(attrs).get("class") or "", ""))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])

    def handle_endtag(self, tag: str) -> None:
        """Add a cell to its row."""
        if tag in {"td", "th"}:
            self.tables[-1][-1].append(" ".join(self.parts[-1][2].split()))

    def handle_data(self, data: str) -> None:
        """Add text to the element."""
        if self.parts:
            tag, colour, text = self.parts[-1]
            self.parts[-1] = (tag, colour, text + data)

    def texts(self, colour: str) -> set[str]:
        """Return the texts of a CSS class."""
        return {" ".join(text.split()) for _, known, text in self.parts if known == colour}

    def rows(self, first: str) -> list[list[str]]:
        """Return the rows of the table whose first heading is `first`."""
        (rows,) = (rows for rows in self.tables if rows[0][0] == first)
        return rows[1:]


@pytest.fixture
def browse(variables: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
    """Return a function that opens the page in Chromium as user "verify" and returns its standard output."""
    name = variables["nginx_server_names"][0]
    context = ssl.create_default_context(cadata=variables["tls_ca_certificate"])
    site = HTTPSConnection(name, timeout=15, context=context)
    site.connect()
    der = site.sock.getpeercert(binary_form=True)
    site.close()
    assert der
    certificate = x509.load_der_x509_certificate(der)
    # Chromium has its own list of CAs, so accept the key that Python has just verified.
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(key).digest()).decode()

    def open_page(*options: str) -> str:
        command = ["chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--disable-quic"]
        command += [
            "--disable-background-networking",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path}",
        ]
        command += [f"--ignore-certificate-errors-spki-list={pin}", *options]
        done = subprocess.run(
            [*command, f"https://verify:verify@{name}{PAGE}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        # Errors that the content security policy, styles or scripts of the page cause.
        complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        assert complaints == []
        return done.stdout

    return open_page


def open_until(browse: Callable[..., str], condition: Callable[[Page], bool]) -> Page:
    """Reload the page until a condition is true; scrapes and rules may take up to 60 s.

    After guesses of other tests, this client waits for its next one before it gets a page.
    """
    deadline = time.monotonic() + 60
    while not ((page := Page(browse("--dump-dom"))).tables and condition(page)):
        assert time.monotonic() < deadline, page.parts
        time.sleep(2)
    return page


def assert_complete(page: Page) -> None:
    """Assert that all tables are complete: no empty cell and no missing value."""
    for rows in page.tables:
        assert len(rows) > 1
        for row in rows:
            assert len(row) == len(rows[0])
            assert not [cell for cell in row if cell == "" or "NaN" in cell or "no value" in cell], row


@pytest.mark.on("edge_apart")
def test_a_healthy_fleet_is_green(
    browse: Callable[..., str], all_variables: dict[str, dict[str, Any]]
) -> None:
    def is_whole(page: Page) -> bool:
        figures = [figure for _, _, *figures in page.rows("host") for figure in figures]
        good = {"answers", *all_variables}
        return page.texts("good") >= good and NO_VALUE not in figures and page.rows("service")[0][0] != NONE

    # An earlier test may have disconnected a host for some scrapes.
    page = open_until(browse, is_whole)
    assert_complete(page)
    assert {name for name, *_ in page.rows("host")} == all_variables.keys()
    service = next(iter(all_variables.values()))["app_name"]
    assert [name for name, *_ in page.rows("service")] == [service]
    for name, release, *figures in page.rows("host"):
        assert (release != NO_VALUE) == ("app" in all_variables[name]["group_names"])
        assert all(figure.removesuffix(" %").isdecimal() for figure in figures), figures
    routes = {(route, owner) for route, owner, *_ in page.rows("route")}
    assert {("GET /health/ready", service), ("GET /metrics", service)} <= routes


@pytest.mark.on("edge_apart")
def test_faults_are_red(
    browse: Callable[..., str], find_host: Callable[[str], Host], all_variables: dict[str, dict[str, Any]]
) -> None:
    """A host is down, an alert for a failed deploy fires, and an alert for two live releases is pending."""
    silent, failed, monitoring = find_host("redis"), find_host("app"), find_host("monitoring")
    home = f"/srv/{all_variables[failed.backend.hostname]['app_name']}"
    history = f"{home}/history.jsonl"
    drift = (
        f"mkdir {home}/drifted && cp -aP {home}/current {home}/kept && ln -sfnT {home}/drifted {home}/current"
    )
    query = urlencode({"query": 'ALERTS{alertname="ReleasesDiffer"}'})
    url = f"http://{all_variables[monitoring.backend.hostname]['prometheus_listen_address']}/api/v1/query?{query}"

    def differing() -> list[dict[str, str]]:
        return [one["metric"] for one in json.loads(fetch(monitoring, url))["data"]["result"]]

    time_ = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    entry = {"time": time_, "action": "deploy", "release": "0.0.0-broken", "result": "failed", "by": "eve"}
    measure = "systemctl restart fastmetal-host-metrics.service"
    expected = {
        "DeployFailed",
        f"{silent.backend.hostname}: no answer",
        f"Not answering: node on {silent.backend.hostname}",
    }
    with silent.sudo(), failed.sudo():
        failed.check_output(f"echo {shlex.quote(json.dumps(entry))} >> {history} && {drift} && {measure}")
        silent.check_output("systemctl stop prometheus-node-exporter.service")
        try:
            page = open_until(browse, lambda page: page.texts("bad") >= expected)
            browse("--hide-scrollbars", "--window-size=1100,940", f"--screenshot={SCREENSHOT}")
            # It is pending for half an hour before it fires, which promtool tests.
            deadline = time.monotonic() + 30
            while not (pending := differing()) and time.monotonic() < deadline:
                time.sleep(1)
        finally:
            silent.check_output("systemctl start prometheus-node-exporter.service")
            back = f"mv -T {home}/kept {home}/current && rmdir {home}/drifted"
            failed.check_output(f"{back}; sed -i '$d' {history} && {measure}")
    assert_complete(page)
    assert [(one["alertstate"], one["service"]) for one in pending] == [
        ("pending", home.removeprefix("/srv/"))
    ]
    service = home.removeprefix("/srv/")
    assert ["DeployFailed", "warning", service, failed.backend.hostname] in page.rows("alert")
    assert SCREENSHOT.read_bytes().startswith(b"\x89PNG")
