"""Many connections of one client: the firewall and Nginx leave room for others."""

import pytest
from testinfra.host import Host

from tests.attacker import LAB
from tests.crowd import crowd, others
from tests.edge import Site
from tests.lab import LABCTL

ENTER = (LABCTL, "enter", LAB.name, "attacker", "--")
# firewall_base_limits
CONNECTIONS = 1000


@pytest.fixture(scope="module")
def site(front: Host, addresses: dict[str, str]) -> Site:
    """Return another client of the public site."""
    with front.sudo():
        ca = front.file("/etc/fastmetal/tls/ca.crt").content_string
    return Site(address=addresses["front1"], name=addresses["front1"], ca=ca, settings={})


@pytest.mark.parametrize(("kind", "port"), [("half", 80), ("hello", 443)])
def test_half_requests_of_one_network_deny_nothing_to_others(site: Site, kind: str, port: int) -> None:
    with crowd(kind, 12000, site.address, port, site.name, enter=ENTER) as opened:
        found, longest = others(site, 80)
    assert 900 <= opened["established"] <= CONNECTIONS
    assert found == {404: 80}
    assert longest < 5


def test_slow_and_idle_clients_deny_nothing_to_others(site: Site) -> None:
    """The attacker has 5,000 idle connections if the firewall lets it, and 150 slow clients."""
    address, name = site.address, site.name
    with (
        crowd("header", 110, address, 80, name, enter=ENTER) as headers,
        crowd("body", 40, address, 443, name, enter=ENTER) as bodies,
        crowd("idle", 5000, address, 443, name, enter=ENTER) as idle,
    ):
        found, longest = others(site, 80)
    assert [headers["established"], bodies["established"]] == [110, 40]
    assert 800 <= idle["established"] <= CONNECTIONS
    assert found == {404: 80}
    assert longest < 2
