"""The objects of templates, with real clients on another host than the servers: this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from tests.lab import ROOT, SERVICES, Lab, play

pytestmark = pytest.mark.anyio
SERVERS = Lab("pytest-service")
CA = "/etc/fastmetal/tls/ca.crt"
TLS = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
Objects = dict[str, dict[str, Any]]


def read_objects(service: str, directory: Path, ca: str) -> Objects:
    """Return the objects of a service for this machine, with its path of the CA."""
    file = directory / f"{service}.json"
    variables = ("-e", SERVICES, "-e", f"service={service}", "-e", f"__objects_file={file}")
    run = play("-i", ROOT / "tests/inventory", "tests/app/objects.yml", *variables)
    assert run.status == 0, run.output
    found: Objects = json.loads(file.read_text().replace(CA, ca))
    return found


@pytest.fixture(scope="module")
def shop(service_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """Return the objects of a service without a prefix."""
    return read_objects("shop", tmp_path_factory.mktemp("objects"), service_environment["DATABASE_SSL_CA"])


@pytest.fixture(scope="module")
def mail(service_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """Return the objects of a service with a prefix."""
    return read_objects("mail", tmp_path_factory.mktemp("objects"), service_environment["DATABASE_SSL_CA"])


@pytest.fixture
def _settings(shop: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that the platform gives to each process of the service."""
    for name, value in shop["settings"].items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_settings")
async def test_asyncpg_connects_with_verified_tls(shop: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = await asyncpg.connect(shop["database"]["url"])
    assert await connection.fetchval(TLS) is True
    assert await connection.fetchval("SELECT current_user") == "shop"
    await connection.close()
    monkeypatch.setenv("PGSSLROOTCERT", "/etc/ssl/certs/ca-certificates.crt")
    with pytest.raises(OSError, match="certificate verify failed"):
        await asyncpg.connect(shop["database"]["url"])


@pytest.mark.usefixtures("_settings")
async def test_sqlalchemy_connects_by_the_driver_of_the_entry(shop: Objects) -> None:
    assert shop["database"]["driver_url"].startswith("postgresql+asyncpg://")
    engine = create_async_engine(shop["database"]["driver_url"])
    owner = create_async_engine(shop["owner"]["driver_url"])
    async with owner.begin() as connection:
        assert (await connection.execute(text(TLS))).scalar_one() is True
        await connection.execute(text("CREATE TABLE IF NOT EXISTS probe (name text)"))
        assert (await connection.execute(text("SELECT similarity('a', 'a')"))).scalar_one() == 1
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO probe VALUES ('a')"))
    with pytest.raises(ProgrammingError, match="must be owner"):
        async with engine.begin() as connection:
            await connection.execute(text("DROP TABLE probe"))
    await engine.dispose()
    await owner.dispose()


def test_libpq_connects_with_verified_tls(shop: Objects) -> None:
    """The host itself is no client: the server refuses it after the handshake."""
    command = f"psql --command 'SELECT 1' {shop['database']['url']}"
    settings = "PGSSLMODE=verify-full PGSSLROOTCERT="
    with pytest.raises(RuntimeError, match=r'no pg_hba\.conf entry .* user "shop".* SSL encryption'):
        SERVERS.ssh("data", f"{settings}{CA} {command}")
    with pytest.raises(RuntimeError, match="certificate verify failed"):
        SERVERS.ssh("data", f"{settings}/etc/ssl/certs/ca-certificates.crt {command}")


@pytest.mark.usefixtures("_settings")
async def test_a_role_has_no_more_connections_than_its_own(shop: Objects) -> None:
    connections = [await asyncpg.connect(shop["database"]["url"]) for _ in range(5)]
    with pytest.raises(asyncpg.TooManyConnectionsError, match='too many connections for role "shop"'):
        await asyncpg.connect(shop["database"]["url"])
    for connection in connections:
        await connection.close()


def test_a_service_uses_its_own_database_of_redis_only(shop: Objects) -> None:
    with Redis.from_url(shop["cache"]["url"], decode_responses=True) as cache:
        assert cache.set("any key", "1", ex=60)
        assert cache.keys("*") == ["any key"]
        assert "redis_version" in cache.info("server")
        assert cache.publish("any channel", "1") == 0
        for command in (
            ["SELECT", 0],
            ["MOVE", "any key", 0],
            ["COPY", "any key", "copy", "DB", 0],
            ["FLUSHDB"],
        ):
            with pytest.raises(NoPermissionError):
                cache.execute_command(*command)


def test_a_prefix_is_enforced_where_it_is_asked_for(mail: Objects) -> None:
    assert mail["cache"]["prefix"] == "mail:"
    with Redis.from_url(mail["cache"]["url"]) as cache:
        assert cache.set("mail:a", "1", ex=60)
        for call in (cache.set, cache.publish):
            with pytest.raises(NoPermissionError):
                call("a", "1")
    with Redis.from_url(mail["queue"]["url"]) as queue:
        assert queue.set("a", "1", ex=60)


def test_services_do_not_see_each_others_keys(shop: Objects, mail: Objects) -> None:
    with Redis.from_url(shop["queue"]["url"]) as ours, Redis.from_url(mail["queue"]["url"]) as theirs:
        ours.set("same", "ours", ex=60)
        assert theirs.get("same") is None
    for password in (shop["cache"]["password"], mail["queue"]["password"]):
        url = shop["queue"]["url"].replace(shop["queue"]["password"], password)
        with Redis.from_url(url) as queue, pytest.raises(AuthenticationError):
            queue.ping()


def test_a_queue_survives_a_crash(shop: Objects) -> None:
    """Redis writes to its log once a second."""
    with Redis.from_url(shop["queue"]["url"]) as queue, Redis.from_url(shop["cache"]["url"]) as cache:
        queue.rpush("jobs", "one")
        cache.set("value", "1", ex=60)
    units = "redis-server@cache redis-server@queue"
    # systemd starts them again by itself; the second command waits until they have read their files.
    SERVERS.ssh(
        "data", f"sleep 1.5; systemctl kill --signal=KILL {units}; sleep 0.5; systemctl start {units}"
    )
    with Redis.from_url(shop["queue"]["url"]) as queue, Redis.from_url(shop["cache"]["url"]) as cache:
        assert queue.lpop("jobs") == b"one"
        assert cache.get("value") is None


def fill(queue: Redis, keys: list[str]) -> None:
    """Write a megabyte to each key."""
    for key in keys:
        queue.set(key, bytes(1_000_000), ex=600)


def test_a_full_queue_refuses_and_never_evicts(shop: Objects) -> None:
    keys = [f"fill{number}" for number in range(64)]
    with Redis.from_url(shop["queue"]["url"]) as queue:
        queue.set("kept", "1", ex=600)
        with pytest.raises(OutOfMemoryError):
            fill(queue, keys)
        assert queue.get("kept") == b"1"
        assert queue.info("stats")["evicted_keys"] == 0
        assert queue.unlink(*keys) > 10
