"""What an operator sets is merged over the defaults and the wiring's entries; nginx has its own test."""

from __future__ import annotations

from ansible.template import trust_as_template

from tests.roles import Role

SECRET = "0123456789abcdef"
FACTS = {"distribution_release": "bookworm", "memtotal_mb": 4000, "installed_packages": []}


def test_a_kernel_setting_keeps_the_default_ones() -> None:
    text = Role("base", base_sysctl={"fs.file-max": 9, "vm.swappiness": None}).render("sysctl.conf.j2")
    assert "fs.file-max = 9" in text
    assert "net.core.somaxconn = 4096" in text
    assert "vm.swappiness" not in text


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
