"""Rules of the firewall from entries, and the sentences that refuse them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import trust_as_template

from plugins.filter import firewall
from plugins.module_utils import ownership
from tests.roles import Role

SSH = {"ports": [22]}


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ({"ports": [80, "90-99"]}, ["meta l4proto tcp th dport { 80, 90-99 }"]),
        ({"ports": [443], "protocol": "udp"}, ["meta l4proto udp th dport { 443 }"]),
        (
            {"ports": [1], "from": ["192.0.2.1", "2001:db8::/48", "192.0.2.1"]},
            [
                "ip saddr { 192.0.2.1 } meta l4proto tcp th dport { 1 }",
                "ip6 saddr { 2001:db8::/48 } meta l4proto tcp th dport { 1 }",
            ],
        ),
        ({"ports": [1], "from": []}, []),
    ],
)
def test_matches_have_one_address_family_each(rule: dict[str, Any], found: list[str]) -> None:
    assert firewall.matches(rule, "th dport") == found


def test_listeners_on_loopback_have_no_rule() -> None:
    listeners = ["127.0.0.1:1", "[::1]:2", "10.1.2.3:4", "[2001:db8::1]:3", "10.1.2.4:4"]
    assert firewall.remote_ports(listeners) == [3, 4]


HOSTVARS: dict[str, dict[str, Any]] = {
    "web1": {"private_address": "10.0.0.1", "__ports": {}, "firewall_base_rules": {"ssh": SSH}},
    "data1": {
        "private_address": "10.0.0.2",
        "__ports": {"postgres": 5432, "redis": 6379, "redis_queue": 6380},
        "firewall_base_rules": {
            "ssh": SSH,
            "http": None,
            "postgres": {"ports": [5432], "from": ["10.0.0.1/32"]},
            "redis": {"ports": [6379], "from": ["10.0.0.9"]},
        },
    },
}


def entry(**keys: Any) -> dict[str, Any]:
    """Return the entry of a service with defaults."""
    return {"database": False, "cache": False, "queue": False, **keys}


ENTRIES = {
    "api": entry(database=True, cache=True),
    "shop": entry(source="/shop", database=True, queue=True, allowed_addresses=["192.0.2.9"]),
    "free": entry(source="/free", egress="internet"),
    "none": entry(source="/none", egress="none", allowed_addresses=["192.0.2.9"]),
}


@pytest.mark.parametrize(("host", "address"), [("web1", "10.0.0.2"), ("data1", "127.0.0.1")])
def test_services_reach_their_servers_and_what_they_declare(host: str, address: str) -> None:
    servers = {"postgres": ["data1"], "redis": ["data1"], "redis_queue": ["data1"]}
    wired = firewall.service_servers(ENTRIES, ENTRIES, host, servers, HOSTVARS)
    database, cache, queue = ({"address": address, "ports": [port]} for port in (5432, 6379, 6380))
    remote = host == "web1"
    assert firewall.service_egress(wired, ENTRIES, {}) == {
        # The included service reaches servers of its own host by sockets.
        "api": {"to": [database, cache] if remote else []},
        "shop": {"to": [database, queue, {"address": "192.0.2.9"}]},
        "free": None,
        "none": {"to": []},
    }
    local = {"postgres": ["shop"], "redis": [], "redis_queue": ["shop"]}
    assert firewall.loopback_clients(wired) == ({name: [] for name in local} if remote else local)


class Hostvars(dict[str, dict[str, Any]]):
    """What Ansible passes as hostvars."""

    _loader = DataLoader()
    raw_get = dict.__getitem__


def test_outbound_rules_mirror_those_of_the_other_hosts() -> None:
    assert firewall.outbound_rules(Hostvars(HOSTVARS), "web1") == {
        "data1_postgres": {"ports": [5432], "protocol": "tcp", "to": ["10.0.0.2"]}
    }
    own = {
        "postgres": {"from": ["10.0.0.9"]},
        "agent": {"ports": [10050], "protocol": "udp", "from": ["10.0.0.0/24"]},
        "closed": {"ports": [], "from": ["10.0.0.0/24"]},
        "wrong": {"ports": [1], "from": ["office"]},
    }
    # A rule that reads hostvars itself.
    edges = trust_as_template("{{ [hostvars.web1.private_address] }}")
    base = {**HOSTVARS["data1"]["firewall_base_rules"], "app": {"ports": [8443], "from": edges}}
    data1 = {**HOSTVARS["data1"], "firewall_base_rules": base, "firewall_rules": own}
    hostvars = Hostvars({**HOSTVARS, "data1": data1})
    assert firewall.outbound_rules(hostvars, "web1") == {
        "data1_agent": {"ports": [10050], "protocol": "udp", "to": ["10.0.0.2"]},
        "data1_app": {"ports": [8443], "protocol": "tcp", "to": ["10.0.0.2"]},
    }


def test_rules_of_the_operator_are_merged() -> None:
    role = Role(
        "firewall",
        firewall_base_rules={"ssh": SSH, "http": {"ports": [80]}, "redis": {"ports": [6379], "from": []}},
        firewall_rules={"ssh": {"from": ["203.0.113.0/24"]}, "http": None, "agent": {"ports": [10050]}},
        firewall_base_limits={"ssh": {"rate": "30/minute", "burst": 30, "connections": 20}},
        firewall_limits={"ssh": {"rate": None}, "agent": {"connections": 5, "except": ["192.0.2.7"]}},
        firewall_local={"tool": {"ports": [9999], "accounts": ["www-data"]}},
        firewall_admin_accounts=["ops"],
        firewall_log_per_minute=0,
        firewall_egress={"shop": {"to": [{"address": "192.0.2.9", "ports": [443]}, {"address": "::/0"}]}},
        firewall_forward_interfaces=["br-*"],
        firewall_vrrp_addresses=["192.0.2.8"],
        firewall_operator_addresses=["192.0.2.6"],
    )
    assert role.refusals() == []
    text = role.render("rules.nft.j2")
    for line in (
        "ip saddr { 203.0.113.0/24 } meta l4proto tcp th dport { 22 } goto limit_ssh",
        "ip saddr { 192.0.2.6 } meta l4proto tcp th dport { 10050 } accept",
        "meta l4proto tcp th dport { 10050 } goto limit_agent",
        "ct status dnat meta l4proto tcp ct original proto-dst { 10050 } accept",
        "ip saddr { 192.0.2.7 } accept",
        "ip saddr { 192.0.2.8 } meta l4proto 112 accept",
        'iifname "br-*" accept',
        'oif "lo" tcp dport { 9999 } meta skuid != { 0, $uid_www-data, $uid_ops } counter reject with'
        " tcp reset",
        "meta skuid $uid_shop goto egress_shop",
        "ip daddr { 192.0.2.9 } meta l4proto tcp th dport { 443 } accept",
        "ip6 daddr { ::/0 } accept",
    ):
        assert f" {line}\n" in text, line
    for word in ("ssh_rate", "{ 80 }", "6379"):
        assert word not in text


def test_outbound_connections_can_be_closed() -> None:
    rules = {"smtp": {"ports": [587], "to": ["192.0.2.25"]}, "web": {"ports": [443]}}
    text = Role("firewall", firewall_outbound="closed", firewall_outbound_rules=rules).render("rules.nft.j2")
    assert " ip daddr { 192.0.2.25 } meta l4proto tcp th dport { 587 } accept\n" in text
    assert " meta l4proto tcp th dport { 443 } accept\n" in text


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"firewall_rules": {"a": {"port": 1}}}, "firewall_rules.a.port is unknown: write ports."),
        ({"firewall_rules": {"a": {"ports": [0]}}}, "firewall_rules.a.ports has 0: give ports"),
        ({"firewall_rules": {"a": {"ports": ["9-8"]}}}, "firewall_rules.a.ports has 9-8: give ports"),
        ({"firewall_rules": {"A b": {"ports": [1]}}}, "firewall_rules.A b is no name: use lower-case"),
        ({"firewall_rules": {"a": {"ports": [1], "protocol": "icmp"}}}, "firewall_rules.a.protocol is icmp"),
        ({"firewall_rules": {"a": {"ports": [1], "from": ["web1"]}}}, "firewall_rules.a.from has web1: give"),
        ({"firewall_rules": {"ssh": None}}, "firewall_rules.ssh is empty, which locks Ansible out"),
        ({"firewall_limits": {"a": {"rate": "1/minute"}}}, "firewall_limits has a, which is no rule of this"),
        ({"firewall_limits": {"ssh": {"rate": "30r/m"}}}, "firewall_limits.ssh.rate is 30r/m: give a number"),
        ({"firewall_limits": {"ssh": {"connections": 0}}}, "firewall_limits.ssh.connections is 0: give 1"),
        ({"firewall_local": {"a": {"ports": [1], "accounts": ["x y"]}}}, "firewall_local.a.accounts has x y"),
        ({"firewall_egress": {"a": {"to": [{"ports": [1]}]}}}, "firewall_egress.a.to takes entries with"),
        ({"firewall_operator_addresses": ["me"]}, "firewall_operator_addresses has me: give addresses"),
        ({"firewall_admin_accounts": ["me@corp"]}, 'firewall_admin_accounts has "me@corp": give names of'),
        ({"firewall_forward_interfaces": ['a"b']}, "firewall_forward_interfaces takes names of interfaces"),
        (
            {"__preflight_probe": {"listeners": [{"port": 2222, "unit": "ssh.service"}]}},
            "sshd listens on port 2222 and the firewall would admit only port 22: set firewall_rules to",
        ),
    ],
)
def test_faults_are_sentences(variables: dict[str, Any], sentence: str) -> None:
    found = Role("firewall", firewall_base_rules={"ssh": SSH}, **variables).refusals()
    assert len(found) == 1
    assert found[0].startswith(sentence)


def listener(port: int, unit: str = "", *, loopback: bool = False) -> dict[str, Any]:
    """Return a listener as host_probe does."""
    return {"port": port, "loopback": loopback, "program": "agent", "unit": unit}


@pytest.mark.parametrize(
    ("entry", "ports"),
    [
        ({"ports": [10050, "60000-60100"]}, [22, 10050, "60000-60100"]),
        (None, [22]),
        ({"port": 10050}, None),
        ({}, None),
        ({"ports": 10050}, None),
        ({"ports": ["ssh"]}, None),
        ({"ports": [1], "from": 5}, None),
        (10050, None),
    ],
)
def test_mistyped_rules_admit_no_ports(entry: Any, ports: list[int | str] | None) -> None:
    assert firewall.admitted_ports({"ssh": SSH}, {"agent": entry}) == ports


def test_ports_of_the_operator_are_not_closed_silently() -> None:
    listeners = [
        listener(10050),
        listener(8080),
        listener(60001),
        listener(9100),
        listener(8088, "nginx.service"),
        listener(25, loopback=True),
    ]
    found = list(ownership.closed_port_faults(listeners, [22, 8080, "60000-60100"], [9100]))
    assert found == [
        "agent listens on port 10050, which the firewall would close to other hosts: admit it in"
        " firewall_rules ({name: {ports: [10050]}}), or add firewall to preflight_take_over"
    ]
