"""Migrations of an application that knows nothing of this repository, beside its live release.

`notes` calls `alembic upgrade head`, and connects by psycopg2 for that and by asyncpg else.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.apps import commit
from tests.apps.host import HOST, Apps
from tests.lab import Run, wait_until

pytestmark = pytest.mark.timeout(300)
RATE = 12
LOCK_KEY = 0x666173746D657461
# A column of the table that every request reads, and a schema of its own.
REVISION = '''"""{name}"""

import sqlalchemy as sa
from alembic import op

revision = "{name}"
down_revision = "{before}"


def upgrade() -> None:
    op.add_column("notes", sa.Column("{name}", sa.Text))
    op.execute("CREATE SCHEMA {name}")
    op.create_table("marks", sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True), schema="{name}")
    {more}


def downgrade() -> None:
    op.execute("DROP SCHEMA {name} CASCADE")
    op.drop_column("notes", "{name}")
'''


def sql(apps: Apps, statement: str) -> str:
    """Run a statement in the database of `notes` as the superuser, and return its output."""
    return apps.ssh(f'runuser -u postgres -- psql --no-psqlrc -qAt -d notes -c "{statement}"')


def add_revision(apps: Apps, more: str = "") -> str:
    """Commit a revision after the newest one, and return its name."""
    versions = apps.repository("notes") / "migrations/versions"
    texts = [path.read_text() for path in versions.glob("*.py")]
    known = {name for text in texts for name in re.findall(r'^revision = "(.*)"', text, re.MULTILINE)}
    used = {name for text in texts for name in re.findall(r'^down_revision = "(.*)"', text, re.MULTILINE)}
    (before,) = known - used
    name = f"r{secrets.token_hex(4)}"
    (versions / f"{name}.py").write_text(REVISION.format(name=name, before=before, more=more))
    commit(apps.repository("notes"), f"Add {name}")
    return name


def revision(apps: Apps) -> str:
    """Return the revision of the database."""
    return sql(apps, "SELECT version_num FROM alembic_version")


@contextmanager
def session(apps: Apps, *statements: str) -> Iterator[None]:
    """Run statements in a session that stays open for the block, as an operator's would."""
    name = f"report-{secrets.token_hex(4)}"
    own = f"FROM pg_stat_activity WHERE application_name = '{name}'"
    words = " ".join(f'-c "{statement}"' for statement in (*statements, "SELECT pg_sleep(300)"))
    command = f"PGAPPNAME={name} runuser -u postgres -- psql --no-psqlrc -qAt -d notes {words}"
    with subprocess.Popen(
        ["ssh", "-F", apps.lab.directory / "ssh_config", HOST, command], stdout=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(10, lambda: sql(apps, f"SELECT count(*) {own} AND query ~ 'pg_sleep'") == "1")
            yield
        finally:
            sql(apps, f"SELECT pg_terminate_backend(pid) {own}")
            process.wait(10)


@pytest.fixture(scope="module")
def requests(apps: Apps) -> dict[str, Any]:
    """Return reads and writes of the table `notes`, as a user who has signed up."""
    person = {"username": f"user-{secrets.token_hex(4)}", "password": secrets.token_hex(16)}
    assert apps.ask("notes", "/api/users", "POST", person).status == 201
    token = json.loads(apps.ask("notes", "/api/users/login", "POST", form=person).body)["access_token"]
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    one = {"path": "/api/notes", "headers": headers}
    write = {"method": "POST", "status": 201, "body": '{"title": "{key}"}', "expect": "{key}"}
    return {"mix": "rrRw", "requests": {"r": one | {"expect": "["}, "w": one | write}}


@dataclass
class Refused:
    """A release that is installed and was refused, with its revision and what the database had."""

    release: str
    revision: str
    before: str
    output: str

    @property
    def accepted(self) -> str:
        """The command that migrates to it, with its dangerous statement accepted."""
        words = json.dumps({self.revision: {"allow": ["drop"]}})
        return f"notes-release migrate {self.release} --migrate='alembic upgrade head' --revisions='{words}'"


@pytest.fixture(scope="module")
def refused(apps: Apps) -> Refused:
    """Deploy a release whose revision drops a column and divides by zero."""
    live, before = apps.release("notes"), revision(apps)
    name = add_revision(apps, 'op.drop_column("notes", revision); op.execute("SELECT 1 / 0")')
    run = apps.play("deploy", "notes")
    (apps.repository("notes") / f"migrations/versions/{name}.py").unlink()
    commit(apps.repository("notes"), f"Remove {name}")
    assert run.status != 0
    assert (apps.release("notes"), revision(apps)) == (live, before)
    releases = "ls -t /srv/notes/releases/*/failed.json | head -1"
    return Refused(Path(apps.ssh(releases)).parent.name, name, before, run.output)


def test_a_dangerous_revision_is_refused_until_it_is_accepted(apps: Apps, refused: Refused) -> None:
    name = refused.revision
    assert f"Revision {name}: `ALTER TABLE notes DROP COLUMN {name}` removes what the live" in refused.output
    failure = f"division by zero.*The database is at revision {refused.before}, as before"
    with pytest.raises(RuntimeError, match=failure):
        apps.ssh(refused.accepted)
    assert revision(apps) == refused.before
    assert "Traceback" in apps.ssh(f"cat /srv/notes/releases/{refused.release}/migration.log")


def test_a_migration_behind_an_open_reader_fails_or_waits_its_turn(
    apps: Apps, refused: Refused, requests: dict[str, Any], measured: list[str]
) -> None:
    """A plain ADD COLUMN queues behind the reader, and every request behind the ADD COLUMN."""
    live = apps.release("notes")
    reader = ("BEGIN", "SELECT count(*) FROM notes")
    results: list[Run] = []
    with apps.load({"notes": requests}, RATE) as loads:
        holder = r"waited \d+ s for a lock, in \d+ attempts. Session \d+ of postgres \(report-\w+\) holds it"
        with session(apps, *reader), pytest.raises(RuntimeError, match=holder):
            apps.ssh(f"{refused.accepted} --wait=3")
        assert (apps.release("notes"), revision(apps)) == (live, refused.before)

        name = add_revision(apps)
        with session(apps, *reader):
            waiting = threading.Thread(target=lambda: results.append(apps.play("deploy", "notes")))
            waiting.start()
            locked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            wait_until(100, lambda: sql(apps, locked) == "1")
            time.sleep(4)
        waiting.join()
        assert results[0].status == 0, results[0].output
    report = loads["notes"].report
    measured.append(f"migrate: notes: {report.figures}")
    assert report.failures == []
    assert max(sample.seconds for sample in report.samples) < 2
    assert revision(apps) == name
    assert apps.release("notes") != live


def test_what_a_migration_creates_in_any_schema_serves(apps: Apps) -> None:
    name = revision(apps)
    inserted = f"SET ROLE notes; INSERT INTO {name}.marks DEFAULT VALUES RETURNING 'written'"
    assert sql(apps, inserted) == "written"


def test_a_migration_has_a_restore_point_and_its_sql(apps: Apps) -> None:
    release = Path(apps.release("notes")).name.rpartition(".")[0]
    assert apps.ssh(f"grep -rlF 'before-notes-{release}@' /var/log/postgresql")
    kept = apps.ssh(f"cat /srv/notes/releases/{release}/migration.sql")
    assert f"ALTER TABLE notes ADD COLUMN {revision(apps)} TEXT;" in kept


def test_two_migrations_never_run_at_once(apps: Apps) -> None:
    release = Path(apps.release("notes")).name.rpartition(".")[0]
    migrate = f"notes-release migrate {release} --migrate='alembic upgrade head' --wait=1"
    refusal = r"Another migration of this database runs .* session \d+ of postgres"
    with session(apps, f"SELECT pg_advisory_lock({LOCK_KEY})"), pytest.raises(RuntimeError, match=refusal):
        apps.ssh(migrate)
    assert json.loads(apps.ssh(migrate)) == {"changed": False}


def test_a_role_without_a_lock_timeout_does_not_migrate(apps: Apps) -> None:
    release = Path(apps.release("notes")).name.rpartition(".")[0]
    setting = sql(apps, "ALTER ROLE notes_owner RESET lock_timeout")
    try:
        with pytest.raises(RuntimeError, match="The role notes_owner, which migrates, has no lock_timeout"):
            apps.ssh(f"notes-release migrate {release} --migrate='alembic upgrade head'")
    finally:
        sql(apps, "ALTER ROLE notes_owner SET lock_timeout = '500ms'")
    assert not setting


def test_a_single_role_migrates_by_a_login_of_its_own(apps: Apps) -> None:
    """It has the limits of migrations, and what it creates belongs to the role that serves."""
    answer = (
        "SELECT concat_ws(' ', tableowner, session_user, current_setting('lock_timeout'))"
        " FROM pg_tables WHERE tablename = 'made'"
    )
    program = f"""
import asyncio, asyncpg, os
async def main():
    server = await asyncpg.connect(os.environ["DATABASE_URL"].replace("+asyncpg", ""))
    async with server.transaction():
        await server.execute("CREATE TABLE made (id int)")
        print(await server.fetchval("{answer}"))
        await server.execute("DROP TABLE made")
asyncio.run(main())
"""
    assert apps.ssh(f"jobs-run --owner python -c {shlex.quote(program)}") == "jobs jobs_owner 500ms"
