"""app.manage and the migrations."""

import asyncio
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import aclosing
from decimal import Decimal

import jwt
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import app
from app import manage
from app.db import Base, Database, create_engine
from app.locks import Lock
from app.metrics import Metrics
from app.migrations import head_revision, known_revisions, run
from app.products.models import Product
from app.products.repository import ProductRepository
from app.redis_link import RedisLink
from app.settings import Settings

Run = Callable[..., tuple[int, str, str]]
LOGIN = "postgresql://api_test@127.0.0.1:1/api_test"


@pytest.fixture(autouse=True)
def _at_head(run_manage: Run) -> Iterator[None]:
    yield
    assert run_manage("migrate")[0] == 0


def test_token_prints_only_the_token(run_manage: Run) -> None:
    status, out, err = run_manage("token", "--subject", "ann", "--lifetime", "60")
    assert (status, err) == (0, "")
    claims = jwt.decode(out.strip(), options={"verify_signature": False})
    assert (claims["sub"], claims["scope"], claims["exp"] - claims["iat"]) == ("ann", "products:write", 60)
    _, out, _ = run_manage("token", "--subject", "ann", "--scope", "a", "--scope", "b")
    assert jwt.decode(out.strip(), options={"verify_signature": False})["scope"] == "a b"


@pytest.mark.parametrize(
    ("arguments", "changes", "status", "message"),
    [
        (["token", "--subject", "ann"], {"SECRET_KEY": "short"}, 4, "SECRET_KEY is too short"),
        (["token", "--subject", "ann"], {"ENVIRONMENT": "testing", "SECRET_KEY": ""}, 4, "required to sign"),
        (["token", "--subject", "ann", "--lifetime", "0"], {}, 2, "at least one second"),
        (["current"], {"DATABASE_URL": LOGIN}, 1, "Database error: "),
        (["migrate", "--to", "nonsense"], {}, 1, "nonsense"),
        (["migrate"], {"DATABASE_OWNER_PASSWORD": "wrong"}, 1, "Database error: password"),
    ],
)
def test_a_failure_prints_one_line_and_sets_the_exit_status(
    run_manage: Run, arguments: list[str], changes: dict[str, str], status: int, message: str
) -> None:
    code, out, err = run_manage(*arguments, **changes)
    assert (code, out) == (status, "")
    assert message in err
    assert err.count("\n") == 1


def test_check_prints_each_result(run_manage: Run) -> None:
    assert run_manage("check")[:2] == (0, "database: ok\nmigrations: ok\ncache: ok\n")
    status, out, _ = run_manage("check", REDIS_URL="redis://127.0.0.1:1/0")
    assert (status, out.splitlines()[2]) == (1, "cache: failed")
    status, out, _ = run_manage("check", REDIS_URL="", DATABASE_URL=LOGIN)
    assert (status, out.splitlines()[0]) == (1, "database: failed")


def test_purge_prints_the_number_of_deleted_rows(run_manage: Run) -> None:
    assert run_manage("purge")[0] == 0
    assert run_manage("purge")[:2] == (0, "purged 0\n")


async def test_purge_runs_once_at_a_time(run_manage: Run, service: Callable[..., Settings]) -> None:
    settings = service()
    prefix = {"REDIS_KEY_PREFIX": settings.redis_key_prefix}
    async with aclosing(RedisLink(settings, Metrics("test"))) as link:
        async with Lock(link, "purge", 30).held():
            assert run_manage("purge", **prefix)[:2] == (0, "another process is purging\n")
        assert run_manage("purge", **prefix)[:2] == (0, "purged 0\n")
        assert await Lock(link, "purge", 30).acquire()  # the command has released it


@pytest.mark.parametrize("url", ["", "redis://127.0.0.1:1/0"])
def test_purge_works_without_redis(run_manage: Run, url: str) -> None:
    assert run_manage("purge", REDIS_URL=url)[:2] == (0, "purged 0\n")


def test_migrations_go_down_and_up_again(run_manage: Run) -> None:
    head = head_revision()
    for target, shown in (("base", "base"), ("head", head), ("base", "base"), ("head", head)):
        status, out, err = run_manage("migrate", "--to", target)
        assert (status, out) == (0, f"database {shown}, release {head}\n")
        lines = [json.loads(line) for line in err.splitlines()]
        assert {line["message"] for line in lines} == {"Migrated"}
        assert run_manage("current")[1] == out
    assert run_manage("migrate") == (0, f"database {head}, release {head}\n", "")


def test_plan_prints_the_sql_of_missing_migrations(run_manage: Run) -> None:
    run_manage("migrate", "--to", "0001")
    status, out, _ = run_manage("plan")
    assert status == 0
    assert [line for line in out.splitlines() if line.startswith("-- Running")] == [
        f"-- Running upgrade {number - 1:04} -> {number:04}" for number in range(2, int(head_revision()) + 1)
    ]
    assert "CREATE TABLE users" in out
    assert run_manage("current")[1].startswith("database 0001,")
    run_manage("migrate")
    assert "Running" not in run_manage("plan")[1]


async def test_the_schema_matches_the_mapped_classes(service: Callable[..., Settings]) -> None:
    for module in pkgutil.walk_packages(app.__path__, "app."):
        if module.name.endswith(".models"):
            importlib.import_module(module.name)
    engine = create_engine(service(), owner=True)
    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(sync, opts={"compare_type": True}), Base.metadata
            )
        )
    await engine.dispose()
    assert differences == []
    assert Product.__tablename__ in Base.metadata.tables


async def test_the_serving_role_may_change_rows_only(service: Callable[..., Settings]) -> None:
    engine = create_engine(service())
    async with engine.connect() as connection:
        await connection.execute(text("SELECT count(*) FROM products"))
        await connection.rollback()
        for statement in ("CREATE TABLE mine (id int)", "DROP TABLE products", "TRUNCATE products"):
            with pytest.raises(Exception, match=r"permission denied|must be owner"):
                await connection.execute(text(statement))
            await connection.rollback()
    await engine.dispose()


async def test_concurrent_migrations_run_once(service: Callable[..., Settings]) -> None:
    settings = service()
    await run.migrate(settings, "base")
    await asyncio.gather(*(run.migrate(settings) for _ in range(4)))
    assert await run.current_revision(settings) == head_revision()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (f"SELECT pg_advisory_lock({run.LOCK_KEY})", "Another migration holds the lock"),
        ("LOCK TABLE products", "A long transaction holds the lock"),
    ],
)
async def test_a_migration_gives_up_on_a_held_lock(
    service: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, statement: str, message: str
) -> None:
    settings = service()
    monkeypatch.setattr(run, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(run, "LOCK_WAIT_SECONDS", 0.2)
    engine = create_engine(settings, owner=True)
    async with engine.connect() as connection:
        await connection.execute(text(statement))
        with pytest.raises(run.MigrationError, match=message):
            await run.migrate(settings, "base", lock_timeout=0.1)
    await engine.dispose()


async def test_rows_outlive_a_migration_down_and_up(service: Callable[..., Settings]) -> None:
    settings = service()
    database = Database(settings, Metrics("test"))
    created, _ = await ProductRepository(database).create(
        {"name": "n", "category": "c", "price": Decimal(1), "stock": 0}
    )
    await run.migrate(settings, "0001")
    await run.migrate(settings)
    assert await ProductRepository(database).read(created) is not None
    await database.aclose()


async def test_a_newer_database_is_not_changed(service: Callable[..., Settings]) -> None:
    settings = service()
    engine = create_engine(settings, owner=True)
    head = head_revision()
    move = text("UPDATE alembic_version SET version_num = :to")
    try:
        async with engine.begin() as connection:
            await connection.execute(move, {"to": "9999"})
        with pytest.raises(run.MigrationError, match="9999"):
            await run.migrate(settings)
    finally:
        async with engine.begin() as connection:
            await connection.execute(move, {"to": head})
        await engine.dispose()


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        manage.main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("migrate", "current", "token", "check"))


def test_file_names_match_the_revisions_that_alembic_finds() -> None:
    scripts = ScriptDirectory.from_config(run.alembic_config())
    assert scripts.get_heads() == [head_revision()]
    assert sorted(script.revision for script in scripts.walk_revisions()) == known_revisions()


def test_lock_key_is_the_same_in_every_release() -> None:
    assert run.LOCK_KEY == 1718447465
