"""What an operator sets is merged over the defaults and the wiring's entries; nginx has its own test."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.template import trust_as_template

from tests.roles import Role

SECRET = "0123456789abcdef"
FACTS = {"distribution_release": "bookworm", "memtotal_mb": 4000, "installed_packages": []}


def test_a_kernel_setting_keeps_the_default_ones() -> None:
    text = Role("base", base_sysctl={"fs.file-max": 9, "vm.swappiness": None}).render("sysctl.conf.j2")
    assert "fs.file-max = 9" in text.splitlines()
    assert "-net.core.somaxconn = 4096" in text.splitlines()
    assert "vm.swappiness" not in text


def test_an_unknown_kernel_setting_of_the_operator_is_no_default() -> None:
    own = {"fs.file-max": 9, "vm.swappiness": None, "net.ipv4.tcp_rmem": "4096 131072 6291456"}
    base = Role("base", base_sysctl=own)
    settings = base.templar.template(trust_as_template("{{ __base_own_settings }}"))
    assert settings == ["fs.file-max=9", "net.ipv4.tcp_rmem=4096 131072 6291456"]


def test_a_redis_user_keeps_those_of_the_wiring() -> None:
    redis = Role(
        "redis",
        ansible_facts=FACTS,
        redis_base_users={"api": {"password": SECRET, "keys": ["api:*"]}},
        redis_users={"api": {"commands": ["+@read"]}, "reports": {"password": SECRET, "keys": ["reports:*"]}},
        instance=trust_as_template("{{ __redis_instances | first }}"),
    )
    users = [line for line in redis.render("redis.conf.j2").splitlines() if line.startswith("user ")]
    assert [line.split()[1] for line in users] == ["default", "api", "reports"]
    assert users[1].endswith(" ~api:* +@read")
    assert users[2].endswith(" ~reports:* +@all -@admin -@dangerous +info")


def test_a_database_keeps_those_of_the_wiring() -> None:
    postgresql = Role(
        "postgresql",
        ansible_facts=FACTS,
        postgresql_listen_addresses=["10.1.2.3"],
        postgresql_client_addresses=["10.1.2.4/32"],
        postgresql_base_databases={"api": {"owner": "api_owner", "app_role": "api"}},
        postgresql_databases={"reports": {"owner": "reports", "client_addresses": ["10.1.2.5/32"]}},
    )
    lines = [line.split() for line in postgresql.render("pg_hba.conf.j2").splitlines()]
    assert [line[1:4] for line in lines if line[:1] == ["hostssl"]] == [
        ["api", "api_owner,api", "10.1.2.4/32"],
        ["reports", "reports", "10.1.2.5/32"],
    ]


def redis_lines(instance: str, **variables: Any) -> list[str]:
    """Return the configuration of an instance, with a queue that has the operator's memory limit."""
    user = {"shop": {"password": SECRET, "keys": ["*"]}}
    queue = {
        "port": 6380,
        "maxmemory_policy": "noeviction",
        "persistence": "aof",
        "users": user,
        "loopback": True,
    }
    redis = Role(
        "redis",
        ansible_facts=FACTS,
        redis_base_users={"api": {"password": SECRET, "keys": ["api:*"]}},
        redis_base_instances={"queue": queue},
        redis_instances={"queue": {"maxmemory_mb": 99}},
        instance=trust_as_template(
            f"{{{{ __redis_instances | selectattr('name', 'eq', '{instance}') | first }}}}"
        ),
        **variables,
    )
    return redis.render("redis.conf.j2").splitlines()


def test_an_instance_of_redis_keeps_what_the_operator_does_not_set() -> None:
    lines = redis_lines("queue")
    assert {"port 6380", "bind 127.0.0.1", "maxmemory 99mb", "maxmemory-policy noeviction"} <= set(lines)
    assert {"appendonly yes", "dbfilename queue.rdb", "unixsocket /run/redis-queue/redis-server.sock"} <= set(
        lines
    )
    assert {"port 0", "maxmemory 396mb", "maxmemory-policy allkeys-lfu"} <= set(redis_lines("cache"))
    assert not [line for line in redis_lines("cache") if line.startswith("bind ")]


@pytest.mark.parametrize(
    ("variables", "limit"),
    [
        ({}, 920),
        ({"redis_listen_addresses": ["192.0.2.1"]}, 920 + 585),
        ({"redis_listen_addresses": ["192.0.2.1"], "redis_max_clients": 50000}, 920 + 992),
    ],
)
def test_tls_connections_of_redis_have_memory_of_their_own(variables: dict[str, Any], limit: int) -> None:
    redis = Role("redis", ansible_facts=FACTS, **variables)
    files = redis.templar.template(trust_as_template("{{ __redis_file_list }}"))
    (unit,) = (file["content"] for file in files if file["path"].endswith("cache.service.d/unit.conf"))
    assert f"MemoryMax={limit}M" in unit.splitlines()


def test_only_a_redis_with_clients_on_other_hosts_waits_for_the_network() -> None:
    for addresses, unit in (([], ""), (["192.0.2.1"], "[Unit]\nWants=network-online.target\n")):
        redis = Role("redis", ansible_facts=FACTS, redis_listen_addresses=addresses)
        files = redis.templar.template(trust_as_template("{{ __redis_file_list }}"))
        (network,) = (file for file in files if file["path"].endswith("network-online.conf"))
        assert network["present"] is bool(addresses)
        assert network["content"].startswith(unit)
        assert "None" not in network["content"]


@pytest.mark.parametrize(
    ("listening", "clients", "allowed"),
    [
        ([], [], "localhost"),
        (["192.0.2.1"], ["192.0.2.9"], "localhost 192.0.2.1 192.0.2.9"),
        (["192.0.2.1"], [], None),
    ],
)
def test_redis_without_named_clients_admits_every_address(
    listening: list[str], clients: list[str], allowed: str | None
) -> None:
    redis = Role(
        "redis",
        ansible_facts=FACTS,
        redis_listen_addresses=listening,
        redis_client_addresses=clients,
    )
    lines = redis.templar.template(trust_as_template("{{ __redis_unit }}")).splitlines()
    assert lines[0] == "[Service]"
    found = [line for line in lines if line.startswith("IPAddress")]
    assert found == (["IPAddressDeny=any", f"IPAddressAllow={allowed}"] if allowed else [])


def test_loopback_has_tls_beside_clients_on_other_hosts() -> None:
    lines = redis_lines("queue", redis_listen_addresses=["192.0.2.1"])
    assert {"port 0", "tls-port 6380", "bind 127.0.0.1 192.0.2.1"} <= set(lines)


def test_loopback_admits_clients_of_this_host_with_a_password() -> None:
    postgresql = Role(
        "postgresql",
        ansible_facts=FACTS,
        postgresql_base_databases={"shop": {"owner": "shop_owner", "app_role": "shop", "loopback": True}},
    )
    lines = [line.split() for line in postgresql.render("pg_hba.conf.j2").splitlines()]
    assert ["host", "shop", "shop_owner,shop", "127.0.0.1/32", "scram-sha-256"] in lines
    assert [line for line in lines if line[:1] == ["hostssl"]] == []
