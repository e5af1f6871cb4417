"""Statistics of Postgres reach the metrics, from one worker, and /health/detail."""

import asyncio
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url, text

from app.auth import READ_OPERATIONS, Tokens
from app.db import create_engine
from app.settings import Settings
from tests.app.conftest import ask_superuser, seeing_all
from tests.app.test_db import drop_connections


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.monitor.START_SECONDS", 0)
    monkeypatch.setattr("app.monitor.INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr("app.lifespan.SHUTDOWN_CHECK_SECONDS", 0.02)


@pytest.fixture
def operator(service: Callable[..., Settings]) -> dict[str, str]:
    token = Tokens(service()).issue("olga", frozenset({READ_OPERATIONS}), 60)
    return {"Authorization": f"Bearer {token}"}


async def figure(client: httpx.AsyncClient, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def leaders(*clients: httpx.AsyncClient) -> list[bool]:
    """Return which workers have collected within the last 0.4 s."""
    before = [await figure(client, "database_monitor_timestamp_seconds") for client in clients]
    await asyncio.sleep(0.4)
    after = [await figure(client, "database_monitor_timestamp_seconds") for client in clients]
    return [new > old for new, old in zip(after, before, strict=True)]


async def test_one_worker_collects_statistics_and_another_takes_over(start: Callable[..., Any]) -> None:
    workers = [await start() for _ in range(2)]
    for _ in range(3):
        await asyncio.sleep(0.2)
        assert sorted(await leaders(*workers)) == [False, True]
        assert await drop_connections(workers[0].app.state.database) > 0
    collecting = workers[(await leaders(*workers)).index(True)]
    assert await figure(collecting, 'database_connections{state="active"}') >= 0
    assert await figure(collecting, 'database_connections{state="idle"}') >= 1
    assert await figure(collecting, "database_size_bytes") > 1_000_000
    assert await figure(collecting, "database_max_connections") > 10
    assert await figure(collecting, 'database_table_size_bytes{table="products"}') > 0


async def test_statistics_of_other_roles_are_complete_or_absent(
    start: Callable[..., Any], service: Callable[..., Settings]
) -> None:
    """Statistics that need pg_read_all_stats are absent without it, not 0."""
    settings = service()
    role = make_url(settings.database_url).username
    hidden = ("database_longest_transaction_seconds", "database_longest_query_seconds")
    owner = create_engine(settings, owner=True)
    try:
        with seeing_all(role):
            async with owner.begin() as connection:
                await connection.execute(text("SELECT 1"))
                client = await start()
                for verb, state in (
                    ("REVOKE pg_read_all_stats FROM", "unknown"),
                    ("GRANT pg_read_all_stats TO", "idle in transaction"),
                ):
                    ask_superuser(f"{verb} {role}")
                    await asyncio.sleep(0.5)
                    shown = (await client.get("/metrics")).text
                    assert [f"\n{name} " in shown for name in hidden] == [verb.startswith("GRANT")] * 2
                    assert await figure(client, f'database_connections{{state="{state}"}}') >= 1
                    assert await figure(client, "database_standbys") == 0
                    assert "database_replication_lag_seconds" not in shown
                assert await figure(client, hidden[0]) > 0
    finally:
        await owner.dispose()


async def test_the_monitor_retries_without_its_database(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    await start(DATABASE_URL="postgresql://api_test@127.0.0.1:1/api_test")
    await asyncio.sleep(0.3)
    assert caplog.text.count("Database monitor failed") >= 2


async def test_detail_reports_release_checks_and_statistics(
    client: httpx.AsyncClient, operator: dict[str, str]
) -> None:
    answer = await client.get("/health/detail", headers=operator)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["ready"], body["release"], body["environment"]) == (True, "test", "production")
    assert body["checks"] == {"database": "ok", "migrations": "ok", "cache": "ok"}
    assert {"used", "idle"} == set(body["pool"])
    database = body["database"]
    assert {table["table"] for table in database["tables"]} >= {"products", "users", "idempotency_keys"}
    assert (database["standbys"], database["replication_lag_seconds"]) == (0, None)


async def test_the_ten_largest_tables_are_shown_with_their_last_vacuum_and_analyze(
    client: httpx.AsyncClient, service: Callable[..., Settings], operator: dict[str, str]
) -> None:
    owner = create_engine(service(), owner=True)
    names = [f"monitored.{name}" for name in ("products", *(f"table_{number}" for number in range(10)))]
    try:
        async with owner.begin() as connection:
            await connection.execute(text("CREATE SCHEMA monitored"))
            for number, name in enumerate(names):
                rows = f"generate_series(1, {(12 - number) * 2000}) AS id"
                create = f"CREATE TABLE {name} AS SELECT id, repeat('x', 100) FROM {rows}"
                await connection.execute(text(create))
        async with owner.connect() as connection:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            started = datetime.now(UTC)
            await connection.execute(text("VACUUM ANALYZE monitored.products"))
        deadline = time.monotonic() + 10
        while True:  # until the server has published the new statistics
            tables = (await client.get("/health/detail", headers=operator)).json()["database"]["tables"]
            own: dict[str, Any] = next((table for table in tables if table["table"] == names[0]), {})
            if own.get("vacuumed_at") and own.get("analyzed_at"):
                break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        sizes = [table["size_bytes"] for table in tables]
        assert (len(tables), sizes) == (10, sorted(sizes, reverse=True))
        for kind in ("vacuumed", "analyzed"):
            at = datetime.fromisoformat(own[f"{kind}_at"])
            assert abs(at - started) < timedelta(seconds=60)
            line = f'database_table_{kind}_timestamp_seconds{{table="{names[0]}"}}'
            while await figure(client, line) != pytest.approx(at.timestamp()):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        # A table of the same name in another schema is a series of its own.
        assert (await client.get("/metrics")).text.count("\ndatabase_table_rows{") == 10
    finally:
        async with owner.begin() as connection:
            await connection.execute(text("DROP SCHEMA IF EXISTS monitored CASCADE"))
        await owner.dispose()


async def test_detail_works_without_a_database(start: Callable[..., Any], operator: dict[str, str]) -> None:
    client = await start(DATABASE_URL="postgresql://api_test@127.0.0.1:1/api_test", REDIS_URL="")
    body = (await client.get("/health/detail", headers=operator)).json()
    assert (body["ready"], body["database"], body["checks"]["cache"]) == (False, None, "off")


async def test_a_worker_shutting_down_is_not_ready_and_closes_connections(
    start: Callable[..., Any], tmp_path: Path, operator: dict[str, str]
) -> None:
    file = tmp_path / "shutdown"
    client = await start(SHUTDOWN_FILE=str(file))
    assert (await client.get("/health/ready")).status_code == 200
    file.touch()
    await asyncio.sleep(0.1)
    ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "shutting down"})
    served = await client.get("/api/v1/products")
    assert (served.status_code, served.headers["connection"]) == (200, "close")
    assert not (await client.get("/health/detail", headers=operator)).json()["ready"]
    file.unlink()
    await asyncio.sleep(0.1)
    assert (await client.get("/health/ready")).status_code == 200
    assert "connection" not in (await client.get("/api/v1/products")).headers
