"""Databases, roles, Redis users and the objects of templates, as they follow from the services."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.template import trust_as_template
from pydantic import PostgresDsn, RedisDsn, TypeAdapter
from redis.asyncio.connection import SSLConnection, parse_url
from sqlalchemy.engine import make_url

from plugins.filter import objects
from plugins.filter.redis import DATABASES, redis_number
from plugins.plugin_utils.services import service_faults
from tests.golden.__main__ import INVENTORIES, hosts, resolve

DEFAULTS: dict[str, Any] = {
    "database": False,
    "database_role": "separate",
    "database_extensions": [],
    "database_connections": 0,
    "cache": False,
    "cache_prefix": "",
    "cache_channels": [],
    "queue": False,
}
SECRET = "0123456789abcdef"
API = {"database": True, "cache": True}
SHOP = {"source": "/shop", "database": True, "cache": True, "queue": True}
PASSWORDS = {"owner": "owner's", "app": "app's"}
VARIABLES = {"groups": {"app": ["web1"], "postgres": ["data1"], "redis": ["data1"]}}


def services(**entries: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return entries with their defaults."""
    return {name: DEFAULTS | entry for name, entry in entries.items()}


@pytest.mark.parametrize("password", [SECRET, "p@ss/w:rd?&#% "])
def test_libraries_read_the_url_of_a_database(password: str) -> None:
    found = objects.postgres_object("127.0.0.1:5432", "shop", "shop", password, "postgresql+asyncpg")
    assert (found["host"], found["port"], found["user"], found["name"]) == ("127.0.0.1", 5432, "shop", "shop")
    for name, scheme in (("url", "postgresql"), ("driver_url", "postgresql+asyncpg")):
        assert TypeAdapter(PostgresDsn).validate_python(found[name]).scheme == scheme
        url = make_url(found[name])
        assert (url.drivername, url.username, url.password) == (scheme, "shop", password)
        assert (url.host, url.port, url.database) == ("127.0.0.1", 5432, "shop")


def test_a_socket_is_a_parameter_of_the_url() -> None:
    found = objects.postgres_object("/run/postgresql:5433", "api", "api", SECRET, "postgresql")
    assert found["url"] == f"postgresql://api:{SECRET}@/api?host=/run/postgresql&port=5433"
    assert make_url(found["url"]).query == {"host": "/run/postgresql", "port": "5433"}


def test_libraries_read_the_url_of_a_cache() -> None:
    plain = objects.redis_object("127.0.0.1:6379", "shop", SECRET, 7, "shop:")
    assert (plain["number"], plain["prefix"]) == (7, "shop:")
    assert TypeAdapter(RedisDsn).validate_python(plain["url"]).path == "/7"
    assert parse_url(plain["url"]) == {
        "host": "127.0.0.1",
        "port": 6379,
        "db": 7,
        "username": "shop",
        "password": SECRET,
    }
    options = parse_url(objects.redis_object("192.0.2.1:6379", "shop", SECRET, 7, ca="/ca.crt")["url"])
    assert options["connection_class"] is SSLConnection
    assert {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.crt"}.items() <= options.items()


def test_the_included_service_keeps_its_passwords_and_others_get_derived_ones() -> None:
    entries = services(api=API, shop=SHOP)
    roles = objects.service_roles(entries, PASSWORDS, SECRET, {"api": 60, "shop": 20})
    assert (roles["api_owner"]["password"], roles["api"]["password"]) == ("owner's", "app's")
    users = objects.service_redis_users(entries, "cache", "redis's", SECRET)
    queue = objects.service_redis_users(entries, "queue", "redis's", SECRET)
    assert users["api"] == {"password": "redis's", "keys": ["api:*"], "channels": ["api:*"]}
    derived = [
        *(roles["shop_owner"]["password"], roles["shop"]["password"]),
        *(users["shop"]["password"], queue["shop"]["password"]),
    ]
    assert len(set(derived)) == 4
    assert all(len(password) == 64 for password in derived)
    other = objects.service_roles(services(blog=SHOP), PASSWORDS, SECRET, {"blog": 20})
    assert other["blog"]["password"] not in derived


def test_a_single_role_owns_the_database() -> None:
    single = services(shop=SHOP | {"database_role": "single", "database_extensions": ["vector"]})
    assert objects.service_databases(single, here=["shop"]) == {
        "shop": {"owner": "shop", "migration_role": "shop_owner", "extensions": ["vector"], "loopback": True}
    }
    assert objects.service_databases(services(api=API, shop=SHOP), here=["api"]) == {
        "api": {"owner": "api_owner", "app_role": "api"},
        "shop": {"owner": "shop_owner", "app_role": "shop"},
    }


def test_services_share_the_connections_of_the_database() -> None:
    entries = services(api=API, shop=SHOP, blog=SHOP | {"database_connections": 7}, plain={"source": "/x"})
    connections = objects.service_connections(entries, 87)
    assert connections == {"api": 40, "shop": 40, "blog": 7}
    roles = objects.service_roles(entries, PASSWORDS, SECRET, connections)
    assert {name: role.get("connection_limit") for name, role in roles.items()} == {
        "api_owner": None,
        "api": 40,
        "shop_owner": None,
        "shop": 40,
        "blog_owner": None,
        "blog": 7,
    }
    alone = objects.service_roles(services(api=API), PASSWORDS, SECRET, {"api": 87})
    assert alone["api"]["connection_limit"] == 87
    assert [name for name, role in roles.items() if role.get("pinned")] == ["api"]


def test_a_prefix_and_channels_limit_a_redis_user() -> None:
    asked = {"cache_prefix": "shop:", "cache_channels": ["chat:*"]}
    for entry, keys, channels in (
        (SHOP, ["*"], ["*"]),
        (SHOP | {"cache_prefix": "shop:"}, ["shop:*"], ["shop:*"]),
        (SHOP | asked, ["shop:*"], ["chat:*"]),
    ):
        user = objects.service_redis_users(services(shop=entry), "cache", "", SECRET)["shop"]
        assert (user["keys"], user["channels"]) == (keys, channels)
        assert user["commands"][-2:] == ["-select", f"+select|{redis_number('shop', entry)}"]
    queue = objects.service_redis_users(services(shop=SHOP | asked), "queue", "", SECRET)["shop"]
    assert (queue["keys"], queue["channels"]) == (["*"], ["*"])


def test_the_number_of_a_service_never_changes() -> None:
    """Another number would lose the jobs that wait in a queue."""
    assert redis_number("shop", SHOP) == 990
    assert redis_number("shop", SHOP | {"cache_number": 12}) == 12
    assert redis_number("api", API) == 0
    assert all(1 <= redis_number(f"service-{n}", SHOP) < DATABASES for n in range(5000))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({}, None),
        ({"cache_number": 5}, "the services blog and shop have the database number 5 in Redis: set"),
        ({"cache_number": 1024}, "services.shop.cache_number is 1024: set it between 1 and 1023"),
        (
            {"database": False, "database_role": "single"},
            "services.shop has database_role and no database: set",
        ),
    ],
)
def test_entries_that_cannot_work_are_refused(entry: dict[str, Any], sentence: str | None) -> None:
    entries = {"api": {}, "blog": SHOP | {"cache_number": 5}, "shop": SHOP | entry}
    found = list(service_faults(entries, VARIABLES))
    assert [one.startswith(sentence or "") for one in found] == ([True] if sentence else []), found


def test_a_service_without_its_server_is_refused() -> None:
    found = list(service_faults({"api": {}, "shop": SHOP}, {"groups": {"app": ["web1"]}}))
    assert found == [
        "services.shop.database needs a server: put a host into the group postgres, or remove database",
        "services.shop.cache needs a server: put a host into the group redis, or remove cache",
        "services.shop.queue needs a server: put a host into the group redis, or remove queue",
    ]


# --- the wiring ---

ENTRIES = {
    "front": {"source": "/front"},
    "api": {},
    "shop": SHOP | {"settings": {"DATABASE_URL": trust_as_template("{{ database.driver_url }}")}},
}


def template(name: str, service: str, expression: str, group: str = "app") -> Any:
    """Return the value of an expression for a service, on the first host of a group of an inventory."""
    for _, variables, templar in hosts(INVENTORIES[name], services=ENTRIES):
        if group in variables["group_names"]:
            templar.available_variables |= variables | {"service_name": service}
            return templar.template(trust_as_template(f"{{{{ {expression} }}}}"))
    raise AssertionError(name)


def test_on_one_host_applications_use_loopback_and_the_included_service_a_socket() -> None:
    assert template("single", "shop", "database.host") == "127.0.0.1"
    assert template("single", "shop", "owner.user") == "shop_owner"
    assert template("single", "shop", "cache.url").startswith("redis://shop:")
    assert template("single", "shop", "queue.url").endswith("@127.0.0.1:6380/990")
    assert template("single", "api", "database.host") == "/run/postgresql"
    assert template("single", "api", "database.password") == "database_app"
    assert template("single", "api", "service_key") == "key"
    assert len(template("single", "shop", "service_key")) == 64


def test_between_hosts_they_use_the_private_address_and_tls() -> None:
    assert template("split", "shop", "database.url").endswith("@192.0.2.21:5432/shop")
    assert "@192.0.2.21:6380/990?ssl_cert_reqs=required&" in template("split", "shop", "queue.url")


def test_an_object_of_a_service_without_it_names_the_key() -> None:
    with pytest.raises(AnsibleError, match=r"services\.front uses the object database or owner: set its key"):
        template("single", "front", "database.url")


def test_the_roles_of_one_host_serve_loopback() -> None:
    (variables,) = resolve(INVENTORIES["single"], services=ENTRIES).values()
    assert variables["postgresql_base_databases"]["shop"]["loopback"] is True
    assert "loopback" not in variables["postgresql_base_databases"]["api"]
    assert variables["redis_loopback"] is True
    assert variables["redis_base_instances"]["queue"]["loopback"] is True
    # Preflight evaluates each entry as that of its own service.
    assert variables["services"]["shop"]["settings"]["DATABASE_URL"].startswith("postgresql://shop:")


def test_the_roles_of_other_hosts_do_not() -> None:
    users = "[redis_base_users | list, redis_base_instances.queue.users | list, redis_loopback]"
    found = template("split", "api", users, group="redis")
    assert found == [["api", "shop", "exporter"], ["shop", "exporter"], False]
