"""What a database that cannot serve a request means for clients, readiness and the log."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url

from app.db import Database
from app.errors import UnavailableError
from app.settings import Settings
from tests.app.conftest import ask_superuser, sign_in
from tests.app.test_interruptions import open_database

URL = "/api/v1/products"
RAISE = "DO $$ BEGIN RAISE 'of the server' USING ERRCODE = '{}'; END $$"


@pytest.fixture
def reasons(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Return a function that returns the logged reasons."""

    def logged() -> list[dict[str, Any]]:
        return [record.__dict__ for record in caplog.records if record.message == "Statement failed"]

    return logged


async def eventually(holds: Callable[[], Any]) -> None:
    """Wait until an asynchronous condition holds."""
    deadline = time.monotonic() + 10
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def backends(database: Database) -> set[int]:
    """Return the backend of each pooled connection."""
    pids = await asyncio.gather(
        *(database.fetch("who", "SELECT pg_backend_pid(), pg_sleep(0.05)") for _ in range(4))
    )
    return {rows[0][0] for rows in pids}


@pytest.fixture
def _read_only_reset() -> Iterator[None]:
    yield
    ask_superuser("ALTER SYSTEM RESET default_transaction_read_only")
    ask_superuser("SELECT pg_reload_conf()")


@pytest.mark.usefixtures("_read_only_reset")
async def test_a_read_only_database_serves_reads(
    start: Callable[..., Any],
    writer: dict[str, str],
    category: str,
    reasons: Callable[[], list[dict[str, Any]]],
) -> None:
    client: httpx.AsyncClient = await start(REDIS_URL="")
    database: Database = client.app.state.database  # type: ignore[attr-defined]
    product = {"name": "n", "category": category, "price": "1"}
    address = (await client.post(URL, json=product, headers=writer)).headers["location"]
    await sign_in(client)
    before = await backends(database)

    async def ready(client: httpx.AsyncClient) -> tuple[int, str, str]:
        answer = await client.get("/health/ready")
        return answer.status_code, answer.json()["status"], answer.json()["checks"]["database"]

    async def changes() -> int:
        return (await client.patch(address, json={"stock": 1}, headers=writer)).status_code

    async def refuses() -> bool:
        return await changes() == 503

    async def accepts() -> bool:
        return await changes() == 200

    ask_superuser("ALTER SYSTEM SET default_transaction_read_only = on")
    ask_superuser("SELECT pg_reload_conf()")
    await eventually(refuses)
    for answer in (
        await client.patch(address, json={"stock": 1}, headers=writer),
        await client.delete(address, headers=writer),
        await client.post(URL, json=product, headers=writer),
        await client.post(URL, json=product, headers=writer | {"Idempotency-Key": category}),
    ):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["detail"] == "The database is read-only. Retry the request."
    assert {line["sqlstate"] for line in reasons()} == {"25006"}
    assert not before & await backends(database)
    for old_or_new in (client, await start(REDIS_URL="")):
        assert await ready(old_or_new) == (200, "degraded", "read-only")
        assert {(await old_or_new.get(path)).status_code for path in (address, URL)} == {200}
    ask_superuser("ALTER SYSTEM RESET default_transaction_read_only")
    ask_superuser("SELECT pg_reload_conf()")
    await eventually(accepts)
    assert await ready(client) == (200, "ready", "ok")


async def test_a_session_that_stays_read_only_is_replaced(
    start: Callable[..., Any], service: Callable[..., Settings], writer: dict[str, str], category: str
) -> None:
    """The role's own setting reaches new sessions only, and old ones keep it."""
    role = make_url(service().database_url).username
    product = {"name": "n", "category": category, "price": "1"}
    ask_superuser(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    try:
        client: httpx.AsyncClient = await start(REDIS_URL="")
        assert (await client.get(URL)).status_code == 200
    finally:
        ask_superuser(f"ALTER ROLE {role} RESET default_transaction_read_only")
    statuses = [(await client.post(URL, json=product, headers=writer)).status_code for _ in range(2)]
    assert statuses == [503, 201]


@asynccontextmanager
async def no_connections_left(role: str | None) -> AsyncIterator[None]:
    ask_superuser(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    try:
        yield
    finally:
        ask_superuser(f"ALTER ROLE {role} CONNECTION LIMIT -1")


async def refused(database: Database, sql: str = "SELECT 1") -> str:
    """Return what a client reads about a statement that fails."""
    with pytest.raises(UnavailableError) as caught:
        await database.execute("test", sql)
    return str(caught.value.detail).removesuffix(" Retry the request.")


@pytest.mark.parametrize(
    ("sqlstate", "words"),
    [
        ("53100", "The database has no space left on its disk."),
        ("53200", "The database is short of resources."),
        ("53300", "The database has too many connections."),
        ("58030", "The database has a system error."),
        ("25006", "The database is read-only."),
        ("57P01", "The database is shutting down."),
        ("57P02", "The database is shutting down."),
        ("57P03", "The database is starting or shutting down."),
        ("57014", "The database took too long."),
        ("55P03", "Another transaction holds a lock that the request needs."),
        ("40001", "The request collided with concurrent changes."),
    ],
)
async def test_clients_and_the_log_read_why_a_statement_failed(
    service: Callable[..., Settings],
    reasons: Callable[[], list[dict[str, Any]]],
    sqlstate: str,
    words: str,
) -> None:
    async with open_database(service()) as database:
        assert await refused(database, RAISE.format(sqlstate)) == words
    (line,) = reasons()
    assert (line["levelno"], line["statement"], line["sqlstate"]) == (logging.WARNING, "test", sqlstate)
    assert (line["reason"], line["suppressed"]) == ("of the server", 0)


async def test_clients_read_why_there_is_no_connection(
    service: Callable[..., Settings], reasons: Callable[[], list[dict[str, Any]]]
) -> None:
    settings = service()
    async with open_database(service(DATABASE_POOL_SIZE="1", DATABASE_POOL_TIMEOUT="0.1")) as database:
        async with no_connections_left(make_url(settings.database_url).username):
            assert await refused(database) == "The database has too many connections."
        async with database.connection("test"):
            assert await refused(database) == "All database connections are in use."
    async with open_database(service(DATABASE_URL="postgresql://api_test@127.0.0.1:1/api_test")) as database:
        assert await refused(database) == "The database refuses connections."
    async with open_database(service(DATABASE_PASSWORD="another-one-that-is-wrong")) as database:
        assert await refused(database) == "The database refuses connections."
    errors = [line["error"] for line in reasons()]
    assert errors == [
        "TooManyConnectionsError",
        "TimeoutError",
        "ConnectionRefusedError",
        "InvalidPasswordError",
    ]


async def test_the_log_of_a_failing_database_is_bounded(
    start: Callable[..., Any],
    reasons: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client: httpx.AsyncClient = await start(DATABASE_URL="postgresql://api_test@127.0.0.1:1/api_test")
    for _ in range(20):
        assert (await client.get(f"{URL}/1")).status_code == 503
    (first,) = (line for line in reasons() if line["statement"] == "products.read")
    assert first["suppressed"] == 0
    monkeypatch.setattr("app.db.time.monotonic", lambda: first["created"] + 1e9)
    assert (await client.get(f"{URL}/1")).status_code == 503
    suppressed = [line["suppressed"] for line in reasons() if line["statement"] == "products.read"]
    assert suppressed == [0, 39]  # a read is repeated once
