"""Liveness checks no dependency; readiness depends on the database and its schema, not on Redis."""

import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.auth import READ_OPERATIONS, Tokens
from app.db import create_engine
from app.migrations import head_revision
from app.settings import Settings


async def ready(client: httpx.AsyncClient) -> tuple[int, dict[str, Any]]:
    answer = await client.get("/health/ready")
    assert answer.headers["cache-control"] == "no-store"
    return answer.status_code, answer.json()


async def test_a_healthy_service_is_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json() == {"status": "alive"}
    assert await ready(client) == (
        200,
        {"status": "ready", "checks": {"database": "ok", "migrations": "ok", "cache": "ok"}},
    )


async def test_without_its_database_the_service_is_alive_but_not_ready(
    start: Callable[..., Any], writer: dict[str, str]
) -> None:
    client = await start(DATABASE_URL="postgresql://api_test@127.0.0.1:1/api_test", REDIS_URL="")
    assert (await client.get("/health/live")).status_code == 200
    status, body = await ready(client)
    assert status == 503
    assert body == {
        "status": "not ready",
        "checks": {"database": "failed", "migrations": "failed", "cache": "off"},
    }
    for answer in (
        await client.get("/api/v1/products"),
        await client.post(
            "/api/v1/products", json={"name": "n", "category": "c", "price": "1"}, headers=writer
        ),
        await client.delete("/api/v1/products/1", headers=writer),
    ):
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "127.0.0.1" not in answer.text
    assert (  # a read is retried once
        'database_errors_total{error="ConnectionRefusedError",query="products.list"} 2.0'
        in (await client.get("/metrics")).text
    )


async def test_a_hanging_check_fails_at_its_deadline(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.health.CHECK_SECONDS", 0.2)
    # The check hangs because the pool has no free connection.
    client = await start(DATABASE_POOL_SIZE="1")
    engine = client.app.state.health._database.engine
    started = time.monotonic()
    async with engine.connect():
        status, body = await ready(client)
    assert time.monotonic() - started < 1
    assert (status, body["checks"]["database"], body["checks"]["migrations"]) == (503, "failed", "failed")
    assert (await ready(client))[0] == 200


@pytest.mark.parametrize(
    ("revision", "status", "word"),
    [(head_revision(), 200, "ok"), ("9999", 200, "newer"), (None, 503, "behind")],
)
async def test_readiness_depends_on_the_schema_revision(
    client: httpx.AsyncClient,
    service: Callable[..., Settings],
    revision: str | None,
    status: int,
    word: str,
) -> None:
    engine = create_engine(service(), owner=True)
    try:
        async with engine.begin() as connection:
            before = await connection.scalar(text("DELETE FROM alembic_version RETURNING version_num"))
            if revision:
                await connection.execute(text("INSERT INTO alembic_version VALUES (:r)"), {"r": revision})
        assert await ready(client) == (
            status,
            {
                "status": "ready" if status == 200 else "not ready",
                "checks": {"database": "ok", "migrations": word, "cache": "ok"},
            },
        )
    finally:
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM alembic_version"))
            await connection.execute(text("INSERT INTO alembic_version VALUES (:r)"), {"r": before})
        await engine.dispose()


async def test_a_database_without_a_schema_is_behind(
    client: httpx.AsyncClient, service: Callable[..., Settings]
) -> None:
    engine = create_engine(service(), owner=True)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE alembic_version RENAME TO kept"))
        status, body = await ready(client)
        assert (status, body["checks"]["database"], body["checks"]["migrations"]) == (503, "ok", "behind")
    finally:
        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE kept RENAME TO alembic_version"))
        await engine.dispose()


async def test_external_endpoints_appear_in_detail_but_not_in_readiness(
    start: Callable[..., Any], service: Callable[..., Settings]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        endpoints = [f"127.0.0.1:{there.getsockname()[1]}", "127.0.0.1:1", "nowhere.invalid:443"]
        client = await start(EXTERNAL_ENDPOINTS=",".join(endpoints))
        token = Tokens(service()).issue("ann", frozenset({READ_OPERATIONS}))
        detail = await client.get("/health/detail", headers={"Authorization": f"Bearer {token}"})
    assert detail.json()["external"] == dict(zip(endpoints, ["ok", "failed", "failed"], strict=True))
    assert detail.json()["ready"] is True
    status, body = await ready(client)
    assert (status, body["status"]) == (200, "ready")
    assert "nowhere" not in str(body)


async def test_health_is_an_alias_of_readiness(
    client: httpx.AsyncClient, start: Callable[..., Any], access_lines: list[dict[str, Any]]
) -> None:
    unready = await start(DATABASE_URL="postgresql://api_test@127.0.0.1:1/api_test", REDIS_URL="")
    for service, status in ((client, 200), (unready, 503)):
        alias, readiness = await service.get("/health"), await service.get("/health/ready")
        assert (alias.status_code, alias.json()) == (readiness.status_code, readiness.json())
        assert alias.status_code == status
        assert alias.headers["cache-control"] == "no-store"
    assert [line["status"] for line in access_lines] == [503, 503]


async def test_detail_has_figures_of_the_processes(
    client: httpx.AsyncClient, service: Callable[..., Settings]
) -> None:
    token = Tokens(service()).issue("ann", frozenset({READ_OPERATIONS}))
    with socket.create_server(("127.0.0.1", 0)):
        detail = (await client.get("/health/detail", headers={"Authorization": f"Bearer {token}"})).json()
    process, workers = detail["process"], detail["workers"]
    assert process["threads"] >= 1
    assert process["open_files"] > process["open_sockets"] >= 1
    assert 10_000_000 < process["memory_bytes"] < 10_000_000_000
    assert process["cpu_seconds"] > 0
    assert 0 < process["uptime_seconds"] < 100_000
    assert workers["workers"] == 1
    assert set(workers) == {"workers", "threads", "open_files", "open_sockets", "memory_bytes"}
    exposed = (await client.get("/metrics")).text
    assert "app_workers 1.0" in exposed
    assert "app_open_sockets" in exposed
