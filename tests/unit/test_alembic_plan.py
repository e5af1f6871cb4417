"""The built-in plan of `alembic upgrade`: real revisions against an SQLite file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import ROOT

PROGRAM = (ROOT / "roles/app/files/release/alembic_plan.py").read_text()
# As an application's own: offline it has no usable URL, and it prints to standard output.
ENV = """
from alembic import context
from sqlalchemy import create_engine

print("loading")
if context.is_offline_mode():
    raise SystemExit("no URL")
with create_engine("sqlite:///notes.db").connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "{name}"
down_revision = {before!r}
{attributes}

def upgrade():
    {body}

def downgrade():
    pass
"""
FIRST = 'op.create_table("notes", sa.Column("id", sa.Integer))'
ADD = 'op.add_column("notes", sa.Column("mood", sa.Text))'


class Project:
    """An application with Alembic."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "db/versions").mkdir(parents=True)
        (directory / "db/alembic.ini").write_text("[alembic]\nscript_location = db\npath_separator = os\n")
        (directory / "db/env.py").write_text(ENV)
        self.revise("a1", None, FIRST)

    def revise(
        self, name: str, before: str | tuple[str, ...] | None, body: str, attributes: str = ""
    ) -> None:
        """Add a revision."""
        text = REVISION.format(name=name, before=before, body=body, attributes=attributes)
        (self.directory / f"db/versions/{name}.py").write_text(text)

    def run(self, *command: str, stdin: str = "") -> str:
        """Run a program of the virtual environment and return its output."""
        program = [str(Path(sys.executable).parent / command[0]), *command[1:]]
        done = subprocess.run(
            program, cwd=self.directory, input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def plan(self, target: str = "head") -> list[str]:
        """Return the lines of the plan."""
        out = self.run("python", "-", "-c", "db/alembic.ini", "upgrade", target, stdin=PROGRAM)
        before, found, plan = out.partition("-- Plan of fastmetal\n")
        assert "loading" in before
        assert found
        return [line for line in plan.splitlines() if line]

    def migrate(self, target: str = "head") -> None:
        """Migrate the database."""
        self.run("alembic", "-c", "db/alembic.ini", "upgrade", target)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_plan_has_the_sql_of_each_pending_revision(project: Project) -> None:
    plan = project.plan()
    assert plan[0] == "-- Database at base"
    assert "-- Running upgrade  -> a1" in plan
    assert any(line.startswith("CREATE TABLE notes") for line in plan)
    project.migrate()
    assert project.plan() == ["-- Database at a1"]
    project.revise("b2", "a1", ADD)
    plan = project.plan()
    assert plan[0] == "-- Database at a1"
    assert "-- Running upgrade a1 -> b2" in plan
    assert "ALTER TABLE notes ADD COLUMN mood TEXT;" in plan


def test_a_plan_changes_nothing(project: Project) -> None:
    project.plan()
    assert project.run("alembic", "-c", "db/alembic.ini", "current").split() == ["loading"]
    assert b"alembic_version" not in (project.directory / "notes.db").read_bytes()


def test_a_plan_has_what_revisions_say_of_themselves(project: Project) -> None:
    project.migrate()
    project.revise("b2", "a1", ADD, 'allow = {"index", "drop"}\nreversible = False')
    plan = project.plan()
    start = plan.index("-- Running upgrade a1 -> b2")
    assert plan[start + 1 : start + 4] == ["-- allow: drop", "-- allow: index", "-- not reversible"]


def test_a_revision_that_reads_the_database_has_its_name_only(project: Project) -> None:
    project.migrate()
    project.revise("b2", "a1", 'op.get_bind().execute(sa.text("SELECT 1")).scalar_one()')
    assert project.plan() == [
        "-- Database at a1",
        "-- No SQL: AttributeError: 'NoneType' object has no attribute 'scalar_one'",
        "-- Running upgrade a1 -> b2",
    ]


def test_branches_and_their_merge(project: Project) -> None:
    project.migrate()
    project.revise("b2", "a1", ADD)
    project.revise("c3", "a1", "pass")
    project.migrate("heads")
    project.revise("d4", ("b2", "c3"), "pass")
    plan = project.plan()
    assert sorted(plan[0].removeprefix("-- Database at ").split(", ")) == ["b2", "c3"]
    assert [line for line in plan if "Running upgrade" in line] in (
        ["-- Running upgrade b2, c3 -> d4"],
        ["-- Running upgrade c3, b2 -> d4"],
    )
