"""Databases, roles, Redis users and the objects of templates, from the services."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import asyncpg
import pytest
from ansible.errors import AnsibleError
from ansible.template import Templar, trust_as_template
from asyncpg.connect_utils import _parse_connect_arguments
from pydantic import PostgresDsn, RedisDsn, TypeAdapter
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from sqlalchemy.engine import make_url

from plugins.filter import objects
from plugins.filter.redis import redis_numbers
from tests.golden.__main__ import INVENTORIES, hosts

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
OWN = {"source": "/home/me/shop"}
SECRET = "0123456789abcdef"


def services(**entries: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return entries with their defaults."""
    return {name: DEFAULTS | entry for name, entry in entries.items()}


@pytest.mark.parametrize("password", [SECRET, "p@ss/w:rd?&#% "])
def test_every_library_accepts_the_url_of_a_database(password: str) -> None:
    """libpq itself is tested on hosts; its clients pass the URL on."""
    database = objects.postgres_object("127.0.0.1:5432", "shop", "shop", password, "postgresql+asyncpg")
    assert str(TypeAdapter(PostgresDsn).validate_python(database["url"])).startswith("postgresql://shop:")
    assert TypeAdapter(PostgresDsn).validate_python(database["driver_url"]).scheme == "postgresql+asyncpg"
    url = make_url(database["driver_url"])
    assert (url.drivername, url.host, url.port, url.username, url.password, url.database) == (
        *("postgresql+asyncpg", "127.0.0.1", 5432, "shop", password, "shop"),
    )
    given = dict.fromkeys(("host", "port", "user", "password", "passfile", "database", "command_timeout"))
    print(given)
