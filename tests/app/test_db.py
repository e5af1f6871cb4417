"""The pool survives dropped connections, and every database error becomes an HTTP error."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import Request
from sqlalchemy import Executable, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.db import Base, Database, create_engine
from app.errors import ConflictError, UnavailableError
from app.metrics import Metrics
from app.products.models import Product
from app.products.repository import LOCK, ProductRepository
from app.settings import Settings
from app.users.repository import UserRepository

URL = "/api/v1/products"
ONE, SLOW = "SELECT 1", "SELECT pg_sleep(5)"


@pytest.fixture
async def database(service: Callable[..., Settings]) -> AsyncIterator[Database]:
    database = Database(
        service(DATABASE_STATEMENT_TIMEOUT="0.3", DATABASE_POOL_SIZE="2", DATABASE_POOL_TIMEOUT="0.2"),
        Metrics("test"),
    )
    yield database
    await database.aclose()


async def scalar(database: Database, statement: Executable) -> Any:
    """Return the first value of a statement in an ORM session."""
    return await database.with_session("test", lambda session: session.scalar(statement))


async def drop_connections(database: Database) -> int:
    """Terminate every other session of this role, as a restart of Postgres does."""
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND pid <> $1"
    async with database.engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        own = await raw.fetchval("SELECT pg_backend_pid()")
        return len(await raw.fetch(kill, own))


async def test_settings_reach_the_server(database: Database) -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "jit")
    values = [await scalar(database, text(f"SHOW {name}")) for name in names]
    assert values == ["300ms", "2s", "10s", "off"]


async def test_a_login_tries_the_second_password_and_prefers_the_accepted_one(
    service: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = service().database_password.get_secret_value(), "another-one-that-is-wrong"
    tried: list[str] = []
    log_in = asyncpg.connect

    async def connect(**arguments: Any) -> Any:
        tried.append(arguments["password"])
        return await log_in(**arguments)

    monkeypatch.setattr("app.sessions.asyncpg.connect", connect)
    changed = service(DATABASE_PASSWORD=wrong, DATABASE_OTHER_PASSWORD=right)
    async with aclosing(Database(changed, Metrics("test"))) as database:
        for _ in range(2):
            assert (await database.fetch("quick", ONE))[0][0] == 1
            await database.engine.dispose()
    assert tried == [wrong, right, right]


async def test_debug_puts_request_ids_into_application_name(start: Callable[..., Any]) -> None:
    who = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-ID": "my-own-id", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    for level, names in (("DEBUG", [f"my-own-id {trace}"] * 2), ("INFO", ["api test"] * 2)):
        client: Any = await start(LOG_LEVEL=level, DATABASE_POOL_SIZE="1", REDIS_URL="")

        @client.app.get("/who")  # type: ignore[untyped-decorator]
        async def ask(request: Request) -> list[str]:
            database: Database = request.app.state.database
            (row,) = await database.fetch("who", who)
            return [row[0], await scalar(database, text(who))]

        assert (await client.get("/who", headers=headers)).json() == names


async def test_a_statement_timeout_leaves_the_connection_usable(database: Database) -> None:
    with pytest.raises(UnavailableError):
        await database.fetch("slow", SLOW)
    with pytest.raises(UnavailableError):
        await scalar(database, text(SLOW))
    assert (await database.fetch("quick", ONE))[0][0] == 1


async def test_a_slow_statement_is_logged_with_its_backend_pid(
    service: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(service(DATABASE_SLOW_STATEMENT="0.1", DATABASE_POOL_SIZE="1"), Metrics("test"))
    backend = (await database.fetch("who", "SELECT pg_backend_pid()"))[0][0]
    await database.fetch("slow", "SELECT pg_sleep(0.15)")
    await database.aclose()
    (record,) = (record.__dict__ for record in caplog.records if record.message == "Slow statement")
    assert (record["statement"], record["backend"]) == ("slow", backend)
    assert record["duration_ms"] >= 150


async def test_a_constraint_violation_is_a_conflict(database: Database) -> None:
    async def violate(session: AsyncSession) -> None:
        session.add(Product(name="n", category="c", price=-1, stock=0))

    with pytest.raises(ConflictError):
        await database.with_session("bad", violate)
    assert await scalar(database, select(Product.id).where(Product.price < 0)) is None


async def test_an_error_in_a_session_rolls_back(database: Database, category: str) -> None:
    async def fail(session: AsyncSession) -> None:
        session.add(Product(name="n", category=category, price=1, stock=0))
        await session.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.with_session("undone", fail)
    assert await scalar(database, select(Product.id).where(Product.category == category)) is None


async def test_a_programming_error_is_not_hidden(database: Database) -> None:
    with pytest.raises(Exception, match="does not exist"):
        await scalar(database, text("SELECT nothing_like_it"))


async def test_a_deadlocked_transaction_is_retried(service: Callable[..., Settings]) -> None:
    database = Database(service(), Metrics("test"))
    repository = ProductRepository(database)
    values = {"name": "n", "category": "c", "price": 1, "stock": 0}
    ids = [(await repository.create(values))[0] for _ in range(2)]
    runs: list[int] = []
    both = asyncio.Barrier(2)

    async def cross(first: int, second: int) -> None:
        runs.append(first)
        await database.fetch("lock", LOCK, first)
        if len(runs) <= 2:
            await both.wait()
        await database.fetch("lock", LOCK, second)

    await asyncio.gather(
        database.transact("cross", lambda: cross(*ids)), database.transact("cross", lambda: cross(*ids[::-1]))
    )
    assert len(runs) == 3  # one of the two was the deadlock's victim
    await database.aclose()


@pytest.fixture
async def owner(service: Callable[..., Settings]) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(service(), owner=True)
    yield engine
    await engine.dispose()


@asynccontextmanager
async def wider_columns(owner: AsyncEngine) -> AsyncIterator[None]:
    """Widen a column of each table, as a migration does."""
    widths = (("products", "name", 200), ("users", "name", 64), ("idempotency_keys", "key", 128))
    for factor in (2, 1):
        async with owner.begin() as connection:
            for table, column, width in widths:
                change = f"ALTER TABLE {table} ALTER COLUMN {column} TYPE varchar({factor * width})"
                await connection.execute(text(change))
        if factor == 2:
            yield


async def test_a_schema_change_fails_no_request(
    start: Callable[..., Any], owner: AsyncEngine, writer: dict[str, str], category: str
) -> None:
    client: httpx.AsyncClient = await start(REDIS_URL="")
    users = UserRepository(client.app.state.database)  # type: ignore[attr-defined]
    product = {"name": "n", "category": category, "price": "1"}
    addresses = [
        (await client.post(URL, json=product, headers=writer)).headers["location"] for _ in range(12)
    ]

    async def ask_all(name: str) -> None:
        """Send each kind of request so often at once that it runs on every pooled connection."""
        keys = [{"Idempotency-Key": f"{category}-{name}-{number}"} for number in range(24)]
        bulk = {"items": [product]}
        for requests in (
            [client.get(address) for address in addresses],
            [client.patch(address, json={"stock": 1}, headers=writer) for address in addresses],
            [client.post(URL, json=product, headers=writer | key) for key in keys[:12]],
            [client.post(URL, json=product, headers=writer | key) for key in keys[:12]],  # replayed
            [client.post("/api/v1/bulk/products", json=bulk, headers=writer | key) for key in keys[12:]],
        ):
            answers = await asyncio.gather(*requests)
            assert {answer.status_code for answer in answers} <= {200, 201}
        assert await asyncio.gather(*(users.find("nobody") for _ in range(12))) == [None] * 12

    await ask_all("before")
    async with wider_columns(owner):
        await ask_all("wide")
    await ask_all("after")


async def test_a_transaction_fails_after_its_last_retry_and_rolls_back(
    database: Database, monkeypatch: pytest.MonkeyPatch, category: str
) -> None:
    monkeypatch.setattr("app.db.ROLLED_BACK", (asyncpg.QueryCanceledError,))
    repository = ProductRepository(database)
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        await repository.create({"name": "n", "category": category, "price": 1, "stock": 0})
        await database.fetch("slow", SLOW)

    with pytest.raises(UnavailableError):
        await database.transact("work", work)
    assert runs == 3
    assert await scalar(database, select(Product.id).where(Product.category == category)) is None


async def test_a_transaction_with_a_lost_connection_is_not_retried(database: Database) -> None:
    async def work() -> None:
        await database.fetch("quick", ONE)
        assert await drop_connections(database) > 0
        await database.fetch("quick", ONE)

    # drop_connections uses a connection outside the transaction.
    with pytest.raises(UnavailableError):
        await database.transact("work", work)
    assert (await database.fetch("quick", ONE))[0][0] == 1


async def test_an_exhausted_pool_is_unavailable(database: Database) -> None:
    async with database.engine.connect(), database.engine.connect():
        with pytest.raises(UnavailableError):
            await database.fetch("quick", ONE)


async def test_requests_survive_dropped_connections(
    start: Callable[..., Any], database: Database, writer: dict[str, str]
) -> None:
    client: httpx.AsyncClient = await start(REDIS_URL="", DATABASE_POOL_TIMEOUT="3")
    users = UserRepository(client.app.state.database)  # type: ignore[attr-defined]
    created = await client.post(URL, json={"name": "n", "category": "c", "price": "1"}, headers=writer)
    address = created.headers["location"]
    for _ in range(3):
        await asyncio.gather(*(client.get(address) for _ in range(8)))
        assert await drop_connections(database) > 0
        answers = await asyncio.gather(*(client.get(address) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert await drop_connections(database) > 0
        assert await asyncio.gather(*(users.find("nobody") for _ in range(8))) == [None] * 8
        await drop_connections(database)
        await asyncio.sleep(
            0.05
        )  # until the closed sockets are noticed: then even a write gets a live connection
        changed = await client.patch(address, json={"stock": 1}, headers=writer)
        assert changed.status_code == 200


async def test_an_idle_connection_is_pinged_before_use(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.db.PING_AFTER_SECONDS", -1)
    assert (await database.fetch("quick", ONE))[0][0] == 1
    assert (await database.fetch("quick", ONE))[0][0] == 1

    def broken(_self: Any) -> None:
        raise ConnectionError

    async with database.engine.connect() as connection:
        adapted = (await connection.get_raw_connection()).dbapi_connection
    monkeypatch.setattr(type(adapted), "ping", broken)
    monkeypatch.setattr("app.db.PING_AFTER_SECONDS", 3600)
    assert (await database.fetch("quick", ONE))[0][0] == 1
    # As after another connection was lost: one idle since before is pinged, and replaced on failure.
    database._lost_at = time.monotonic()
    assert (await database.fetch("quick", ONE))[0][0] == 1


def test_no_relationship_loads_lazily() -> None:
    for mapper in Base.registry.mappers:
        for relationship in mapper.relationships:
            assert relationship.lazy in ("raise", "raise_on_sql")
