"""What an operator without Grafana sees: the status page below the public name, in Chromium."""

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

NOTHING = "\N{EN DASH}"
PAGE = "/prometheus/consoles/status.html"
# The last picture of a page with something to see; docs/status.png is one of these.
PICTURE = Path(__file__).resolve().parents[3] / ".lab/status.png"


class Page(HTMLParser):
    """The text of a rendered page's parts, and the classes that colour them."""

    def __init__(self, dom: str) -> None:
        """Read it."""
        super().__init__()
        self.parts: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a part."""
        if tag in {"p", "h1", "h2", "td", "th"}:
            self.parts.append((tag, dict(attrs).get("class") or "", ""))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])

    def handle_endtag(self, tag: str) -> None:
        """Put a cell into its row."""
        if tag in {"td", "th"}:
            self.tables[-1][-1].append(" ".join(self.parts[-1][2].split()))

    def handle_data(self, data: str) -> None:
        """Add to the part."""
        if self.parts:
            tag, colour, text = self.parts[-1]
            self.parts[-1] = (tag, colour, text + data)

    def texts(self, colour: str) -> set[str]:
        """Return what is shown in a colour."""
        return {" ".join(text.split()) for _, known, text in self.parts if known == colour}

    def rows(self, first: str) -> list[list[str]]:
        """Return the rows of the table whose first heading this is."""
        (rows,) = (rows for rows in self.tables if rows[0][0] == first)
        return rows[1:]


@pytest.fixture
def browse(variables: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
    """Return what opens the page in Chromium as the operator "verify" and returns its standard output."""
    name = variables["nginx_server_names"][0]
    context = ssl.create_default_context(cadata=variables["tls_ca_certificate"])
    site = HTTPSConnection(name, timeout=15, context=context)
    site.connect()
    der = site.sock.getpeercert(binary_form=True)
    site.close()
    assert der
    certificate = x509.load_der_x509_certificate(der)
    # Chromium has a list of authorities of its own; the key that has just been verified is the one it takes.
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(key).digest()).decode()

    def look(*options: str) -> str:
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
        # Whatever the page's policy, its styles or a script of it made the browser complain about.
        complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        assert complaints == []
        return done.stdout

    return look


def look_until(browse: Callable[..., str], shows: Callable[[Page], bool]) -> Page:
    """Open the page until it shows something, for as long as scrapes and rules may take."""
    deadline = time.monotonic() + 60
    while not shows(page := Page(browse("--dump-dom"))):
        assert time.monotonic() < deadline, page.parts
        time.sleep(2)
    return page


def check_figures(page: Page) -> None:
    """Every table is whole: no empty cell, and none that is no number."""
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
        return page.texts("good") >= all_variables.keys() and NOTHING not in figures

    # An earlier test may have cut a host off for some scrapes.
    page = look_until(browse, is_whole)
    check_figures(page)
    assert {name for name, *_ in page.rows("host")} == all_variables.keys()
    for name, release, *figures in page.rows("host"):
        assert (release != NOTHING) == ("app" in all_variables[name]["group_names"])
        assert all(figure.removesuffix(" %").isdecimal() for figure in figures), figures
    assert {"GET /health/ready", "GET /metrics"} <= {route for route, *_ in page.rows("route")}


@pytest.mark.on("edge_apart")
def test_what_is_wrong_is_red(
    browse: Callable[..., str], nearest: Callable[[str], Host], all_variables: dict[str, dict[str, Any]]
) -> None:
    """A host that does not answer, an alert for a failed deploy, and one to come: two releases are live."""
    silent, failed, monitoring = nearest("redis"), nearest("app"), nearest("monitoring")
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
    wanted = {
        "DeployFailed",
        f"{silent.backend.hostname}: no answer",
        f"Not answering: node on {silent.backend.hostname}",
    }
    with silent.sudo(), failed.sudo():
        failed.check_output(f"echo {shlex.quote(json.dumps(entry))} >> {history} && {drift} && {measure}")
        silent.check_output("systemctl stop prometheus-node-exporter.service")
        try:
            page = look_until(browse, lambda page: page.texts("bad") >= wanted)
            browse("--hide-scrollbars", "--window-size=1100,940", f"--screenshot={PICTURE}")
            # Half an hour before it fires it is pending; the rest is promtool's.
            deadline = time.monotonic() + 30
            while not (pending := differing()) and time.monotonic() < deadline:
                time.sleep(1)
        finally:
            silent.check_output("systemctl start prometheus-node-exporter.service")
            back = f"mv -T {home}/kept {home}/current && rmdir {home}/drifted"
            failed.check_output(f"{back}; sed -i '$d' {history} && {measure}")
    check_figures(page)
    assert [(one["alertstate"], one["service"]) for one in pending] == [
        ("pending", home.removeprefix("/srv/"))
    ]
    assert ["DeployFailed", "warning", failed.backend.hostname] in page.rows("alert")
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
