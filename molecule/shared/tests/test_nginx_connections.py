"""Slow, idle and half-open connections of one client leave room for the requests of others."""

import pytest

from tests.crowd import crowd, others
from tests.edge import Site

pytestmark = pytest.mark.on("edge", "once")


@pytest.mark.parametrize(("kind", "port"), [("half", 80), ("hello", 443)])
def test_half_requests_deny_nothing_to_others(site: Site, kind: str, port: int) -> None:
    with crowd(kind, 12000, site.address, port, site.name) as opened:
        found, longest = others(site, 30)
    assert opened["established"] == 12000
    assert found == {404: 30}
    assert longest < 5


def test_slow_and_idle_clients_deny_nothing_to_others(site: Site) -> None:
    address, name = site.address, site.name
    # Fewer bodies than nginx_connections_per_client: these requests come from the same client.
    with (
        crowd("idle", 5000, address, 443, name) as idle,
        crowd("header", 110, address, 80, name) as headers,
        crowd("body", 40, address, 443, name) as bodies,
    ):
        found, longest = others(site, 30)
    assert [each["established"] for each in (idle, headers, bodies)] == [5000, 110, 40]
    assert found == {404: 30}
    assert longest < 2
