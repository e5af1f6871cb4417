"""A host that has IPv6 only."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from testinfra.host import Host

from tests.attacker import LAB
from tests.edge import Site
from tests.lab import wait_until


@pytest.fixture
def without_ipv4() -> Iterator[None]:
    """Take IPv4 from the host of data and monitoring, which restarts."""
    LAB.up(front1="", back1=":ipv6", attacker="")
    yield
    LAB.up(front1="", back1=":dual", attacker="")


@pytest.mark.usefixtures("without_ipv4")
def test_an_edge_serves_both_families_from_a_host_without_ipv4(
    front: Host, addresses: dict[str, str], private: dict[str, str]
) -> None:
    assert "inet " not in LAB.ssh("back1", "ip address show host0")
    ca = front.file("/etc/fastmetal/tls/ca.crt").content_string
    sites = [
        Site(address, addresses["front1"], ca, {}) for address in (addresses["front1"], private["front1"])
    ]
    wait_until(30, lambda: {site.request("/health/ready").status for site in sites} == {200})
    assert {site.request("/api/v1/products").status for site in sites} == {200}
    # A scrape since then; the earlier ones had both families, too.
    scraped = f"timestamp(up{{instance='front1', job='node'}} == 1) > {time.time():.0f}"
    query = f'promtool query instant http://127.0.0.1:9090 "{scraped}"'
    wait_until(60, lambda: LAB.ssh("back1", query).strip())
