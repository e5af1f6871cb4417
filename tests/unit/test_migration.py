"""The judgement of SERVICE-release about a migration: its command, its plan, its errors and the way back.

molecule/apps proves it against Postgres.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ROOT

PROGRAM = ROOT / "roles/app/files/release"
LAUNCHER = """#!/bin/sh
# The words after "--owner --release ID".
shift 3
exec "$@"
"""
# A tool that keeps its state in a file: {name} is the database.
TOOL = """
import sys
from pathlib import Path

database = Path(sys.argv[1])
command, target = sys.argv[2], sys.argv[-1]
if command == "plan":
    at = database.read_text()
    steps = [(before, after) for before, after in (("a1", "b2"), ("b2", "c3")) if after > at]
    for before, after in steps:
        sys.stdout.write(f"-- Running upgrade {before} -> {after}\\nSELECT 1;\\n")
elif command == "back":
    database.write_text(target)
else:
    database.write_text("b2")
    sys.exit("ToolError: division by zero")
"""
ERRORS = {
    "asyncpg": (
        "  File x\nsqlalchemy.exc.DBAPIError: <class 'asyncpg.exceptions.LockNotAvailableError'>:"
        " canceling statement due to lock timeout\n[SQL: ALTER TABLE notes ADD COLUMN mood TEXT]\n"
        "(Background on this error at: https://sqlalche.me/e/20/dbapi)\n",
        "lock timeout [SQL: ALTER TABLE notes ADD COLUMN mood TEXT]",
    ),
    "psycopg": (
        "psycopg.errors.LockNotAvailable: canceling statement due to lock timeout\nCONTEXT:  x\n",
        "psycopg.errors.LockNotAvailable: canceling statement due to lock timeout",
    ),
    "psql": (
        "psql:up.sql:3: ERROR:  canceling statement due to lock timeout\n",
        "psql:up.sql:3: ERROR:  canceling statement due to lock timeout",
    ),
}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, whose neighbours have common names."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PROGRAM))
    monkeypatch.syspath_prepend(str(ROOT / "plugins/module_utils"))
    yield importlib.import_module("migration")
    for name in ("migration", "database", "lint", "service", "files", "history"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.fixture
def migrate(module: Any, tmp_path: Path) -> Callable[..., Any]:
    """A function that runs a migration of the service `shop` to the release `r1`."""
    service = module.Service("shop")
    service.etc, service.srv = tmp_path / "etc", tmp_path / "srv"
    (service.srv / "releases/r1").mkdir(parents=True)
    (tmp_path / "run").write_text(LAUNCHER)
    (tmp_path / "run").chmod(0o755)

    def run(migrate: str, plan: str = "", back: str = "", **more: Any) -> Any:
        options = {"migrate": migrate, "plan": plan, "back": back, "revisions": {}, "wait": 1} | more
        migration = module.Migration(service, "r1", options)
        migration.launcher = [str(tmp_path / "run"), "--owner", "--release", "r1"]
        return migration.run()

    return run


@pytest.mark.parametrize(("output", "reason"), ERRORS.values(), ids=list(ERRORS))
def test_a_lock_timeout_is_known_whatever_the_driver(module: Any, output: str, reason: str) -> None:
    assert module.LOCK_TIMEOUT.search(output)
    assert module.reason_of(output).endswith(reason)


def test_the_reason_is_the_error_and_not_the_lines_around_it(module: Any) -> None:
    output = "INFO  [alembic] x\nFAILED: Can't locate revision identified by 'b2'\n"
    assert module.reason_of(output) == "FAILED: Can't locate revision identified by 'b2'"
    assert not module.LOCK_TIMEOUT.search("Migration retries after a lock timeout")
    assert module.reason_of("") == "it printed nothing; `journalctl -n 20` may know more"


@pytest.mark.parametrize(
    ("command", "split"),
    [
        ("alembic upgrade head", (["alembic"], ["upgrade", "head"])),
        (
            "python -m alembic -c db/a.ini upgrade +1",
            (["python", "-m", "alembic"], ["-c", "db/a.ini", "upgrade", "+1"]),
        ),
        ("alembic stamp head", None),
        ("python -m app.manage migrate", None),
        ("sh -c 'alembic upgrade head'", None),
    ],
)
def test_an_alembic_upgrade_is_recognized(module: Any, command: str, split: object) -> None:
    assert module.alembic_words(module.shlex.split(command)) == split


def test_the_way_back_of_alembic_has_its_options(module: Any) -> None:
    options = {
        "migrate": "alembic -c db/a.ini upgrade head",
        "plan": "",
        "back": "",
        "revisions": {},
        "wait": 1,
    }
    migration = module.Migration(module.Service("shop"), "r1", options)
    assert migration.back_command == ["alembic", "-c", "db/a.ini", "downgrade"]


def test_a_failure_half_way_goes_back(migrate: Callable[..., Any], tmp_path: Path) -> None:
    database = tmp_path / "database"
    database.write_text("a1")
    (tmp_path / "tool.py").write_text(TOOL)
    words = f"{sys.executable} {tmp_path}/tool.py {database}"
    with pytest.raises(Exception, match=r"failed: ToolError: division by zero.*is at revision a1, as before"):
        migrate(f"{words} migrate", f"{words} plan", f"{words} back --to")
    assert database.read_text() == "a1"
    release = tmp_path / "srv/releases/r1"
    assert "division by zero" in (release / "migration.log").read_text()
    assert not (release / "migration.sql").exists()
    with pytest.raises(Exception, match="Look at the database: it may have a part of the migration"):
        migrate(f"{words} migrate", f"{words} plan")


def test_a_migration_waits_for_a_lock(migrate: Callable[..., Any], tmp_path: Path) -> None:
    """The first attempts give up; a command that always does ends after the time."""
    command = f"sh -c 'test -e {tmp_path}/two && exit; test -e {tmp_path}/one && touch {tmp_path}/two;"
    command += f" touch {tmp_path}/one; echo LockNotAvailable >&2; exit 1'"
    assert migrate(command, wait=10) == {"changed": True, "revisions": []}
    with pytest.raises(Exception, match=r"waited 0 s for a lock, in 1 attempts\. A long transaction holds"):
        migrate("sh -c 'echo LockNotAvailable; exit 1'", wait=0.1)


def test_nothing_is_migrated_if_the_plan_is_empty(migrate: Callable[..., Any]) -> None:
    assert migrate("false", "echo 'BEGIN; COMMIT;'") == {"changed": False}


def test_a_dangerous_plan_is_refused_before_it_runs(migrate: Callable[..., Any], tmp_path: Path) -> None:
    plan = "printf '%s\\n' '-- Running upgrade a1 -> b2' 'DROP TABLE notes;'"
    with pytest.raises(
        Exception, match="Revision b2: `DROP TABLE notes` removes what the live release may use"
    ):
        migrate(f"touch {tmp_path}/ran", plan)
    assert not (tmp_path / "ran").exists()
    accepted = {"b2": {"allow": ["drop"], "compatible": False}}
    assert migrate(f"touch {tmp_path}/ran", plan, revisions=accepted)["revisions"] == ["b2"]
    assert "-- not compatible" in (tmp_path / "srv/releases/r1/migration.sql").read_text()


def test_a_barrier_names_the_restore_point_of_its_migration(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = module.Service("shop")
    service.srv = tmp_path
    entries = [{"release": release, "result": "ok"} for release in ("r0", "r1")]
    monkeypatch.setattr(service, "history", lambda: entries)
    home = tmp_path / "releases/r1"
    home.mkdir(parents=True)
    (home / "migration.sql").write_text("-- Running upgrade a1 -> b2\n-- not reversible\nSELECT 1;\n")
    assert service.barriers() == {"r0": "r1 brought it to revision b2, which is not reversible"}
    options = {"migrate": "true", "plan": "", "back": "", "revisions": {}, "wait": 1}
    point = module.Migration(service, "r1", options).restore_point()
    assert re.fullmatch(r"before-shop-r1@\d{8}T\d{6}Z", point)
    (home / "restore-point").write_text(point)
    assert f"; restore.yml -e target=restore_point={point} undoes that, and" in service.barriers()["r0"]
