"""The filters of the wiring, one by one; tests/golden shows them at work."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter import wiring

HOSTVARS: dict[str, dict[str, Any]] = {
    "web1": {
        "private_address": "192.0.2.11",
        "__ports": {"app": 8443},
        "exporter_tls": True,
        "__scrape_addresses": {"node": "192.0.2.11:9100"},
    },
    "mon1": {
        "private_address": "192.0.2.31",
        "exporter_tls": "no",
        "__scrape_addresses": {"node": "127.0.0.1:9100"},
    },
}


def test_addresses() -> None:
    assert wiring.addresses(["mon1", "web1"], HOSTVARS) == ["192.0.2.31", "192.0.2.11"]
    assert wiring.cidrs(["web1"], HOSTVARS) == ["192.0.2.11/32"]
    assert wiring.endpoints(["web1"], HOSTVARS, "app") == ["192.0.2.11:8443"]
    assert wiring.endpoints([], HOSTVARS, "app") == []


def test_ipv6_addresses_have_brackets_before_a_port_and_a_prefix_of_128() -> None:
    hostvars = {"six1": {"private_address": "fd00::11", "__ports": {"app": 8443}}}
    assert wiring.addresses(["six1"], hostvars) == ["fd00::11"]
    assert wiring.cidrs(["six1"], hostvars) == ["fd00::11/128"]
    assert wiring.endpoints(["six1"], hostvars, "app") == ["[fd00::11]:8443"]
    for host, written in {
        "fd00::11": "[fd00::11]",
        "[fd00::11]": "[fd00::11]",
        "a.example": "a.example",
    }.items():
        assert wiring.url_host(host) == written


def test_sans() -> None:
    names = ["api.example.com", "192.0.2.1", "2001:db8::1", "192.example", "api.example.com"]
    assert wiring.sans(names) == ["DNS:api.example.com", "IP:192.0.2.1", "IP:2001:db8::1", "DNS:192.example"]


def test_present_keeps_what_is_empty() -> None:
    entries = {"empty": "", "zero": 0, "none": None, "off": False, "on": True, "list": []}
    assert wiring.present(entries) == {"empty": "", "zero": 0, "on": True, "list": []}


BASE = {"api": {"path": "/", "burst": 100}, "auth": {"path": "/auth/", "burst": 5}}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, [{"name": "api", "path": "/", "burst": 100}, {"name": "auth", "path": "/auth/", "burst": 5}]),
        ({"auth": None, "api": {"burst": 1}}, [{"name": "api", "path": "/", "burst": 1}]),
        ({"api": False, "auth": None, "new": {"path": "/new/"}}, [{"name": "new", "path": "/new/"}]),
        ({"unknown": None, "api": None, "auth": False}, []),
        ({"api": {"burst": None}, "auth": None}, [{"name": "api", "path": "/"}]),
    ],
)
def test_merge_entries(own: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert wiring.merge_entries(BASE, own) == expected


def test_merge_entries_restores_what_the_base_leaves_out() -> None:
    assert wiring.merge_entries({"api": None}, {"api": {"path": "/"}}, "zone") == [
        {"zone": "api", "path": "/"}
    ]
    assert wiring.merge_entries({"api": None}, {}) == []


def test_merge_entries_refuses_what_is_no_dictionary() -> None:
    with pytest.raises(AnsibleFilterError, match="entry api must be a dictionary, or null to remove it"):
        wiring.merge_entries(BASE, {"api": "50r/s"})


@pytest.mark.parametrize(
    ("host", "edges", "monitoring", "expected"),
    [
        ("one", ["one"], ["one"], {"host": "one", "edge": "one", "remote": False}),
        ("web", ["web"], ["mon1", "mon2"], {"host": "mon1", "edge": "web", "remote": True}),
        ("mon2", ["web"], ["mon1", "mon2"], {"host": "mon2", "edge": "web", "remote": True}),
        ("a", ["a", "b"], ["a"], {"host": "a", "edge": "a", "remote": True}),
        ("data", [], [], {"host": "", "edge": "", "remote": False}),
    ],
)
def test_console_hosts(host: str, edges: list[str], monitoring: list[str], expected: dict[str, Any]) -> None:
    assert wiring.console_hosts(host, edges, monitoring) == expected


def test_hosts_reboot_one_after_the_other() -> None:
    hosts = [f"host{index:02}" for index in range(17)]
    assert wiring.reboot_time("host00", reversed(hosts)) == "04:30"
    assert wiring.reboot_time("host15", hosts) == "08:15"
    assert wiring.reboot_time("host16", hosts) == "04:30"


@pytest.mark.parametrize(
    ("connections", "workers", "size"), [(87, 4, 8), (67, 4, 7), (33, 4, 3), (33, "3", 4), (5, 8, 1)]
)
def test_pool_size(connections: int, workers: int, size: int) -> None:
    assert wiring.pool_size(connections, workers) == size
    assert size == 1 or 2 * int(workers) * (size + 1) <= connections
