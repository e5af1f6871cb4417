"""A copy for staging: how rules are read, and the SQL that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anonymise
import pytest
from errors import BackupError

from tests.lab import ROOT

QUIET: dict[str, Any] = {"triggers": [], "rules": [], "unchecked": [], "mappings": []}


def rule(column: str, expression: str = "'x' || id", **fields: Any) -> dict[str, Any]:
    """Return a noted rule."""
    made = {
        "table": "public.users",
        "partitioned": False,
        "action": "anonymise",
        "name": column,
        "column": column,
        "type": "text",
        "expression": expression,
        "constant": False,
        "allow": None,
    }
    return made | fields


def sql(*rules: dict[str, Any], references: list[dict[str, Any]] | None = None, **quiet: Any) -> str:
    """Return the SQL of rules."""
    return anonymise.replacement(anonymise.Noted(list(rules), {}, references or []), QUIET | quiet)


def test_a_block_begins_with_its_database_and_keeps_its_line_numbers() -> None:
    text = "-- mine\n\n-- database: api\nSELECT 1;\n--Database: my shop\nSELECT 2;\nSELECT 3;"
    rules = anonymise.Rules(text)
    assert list(rules.blocks) == ["api", "my shop"]
    assert rules.blocks["api"].splitlines() == ["", "", "", "SELECT 1;"]
    assert rules.blocks["my shop"].splitlines() == ["", "", "", "", "", "SELECT 2;", "SELECT 3;"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", 'The rules have no line "-- database: NAME".'),
        ("-- nothing\n", 'The rules have no line "-- database: NAME".'),
        ("-- x\nSELECT 1;", 'The rules begin before a line "-- database: NAME", in line 2.'),
        ("-- database:\n", 'The rules have "-- database: NAME" without a name in line 1.'),
        (
            "-- database: api\n-- database: api\n",
            "The rules have two blocks for the database api: make it one.",
        ),
    ],
)
def test_rules_without_databases_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(BackupError) as raised:
        anonymise.Rules(text)
    assert str(raised.value) == sentence


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"The rules in .*/none cannot be read: .*No such file"):
        anonymise.read_rules(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(BackupError, match=r"The rules in .*/binary cannot be read: 'utf-8' codec"):
        anonymise.read_rules(tmp_path / "binary")


def test_the_example_is_of_one_database() -> None:
    assert list(anonymise.read_rules(ROOT / "docs/anonymise.sql").blocks) == ["api"]


def test_all_new_values_are_computed_before_the_first_is_written() -> None:
    found = sql(
        rule("name"), rule("note", table="public.posts"), rule("", table="public.old", action="empty")
    )
    assert found.rindex("CREATE UNLOGGED TABLE") < found.index("TRUNCATE ONLY public.old")
    assert found.index("TRUNCATE") < found.index("UPDATE ONLY public.users")
    assert found.count("contain their former value") == 2
    assert found.startswith("BEGIN READ WRITE; SET LOCAL session_replication_role = replica;")
    assert found.endswith("COMMIT;")


def test_a_constant_is_not_compared() -> None:
    assert "former value" not in sql(rule("name", "'x'", constant=True))


def test_allowed_values_are_exempt_and_quoted() -> None:
    assert """(lower(('o''clock')::text) COLLATE "C")""" in sql(rule("name", allow=["o'clock"]))


def test_partitions_change_with_their_table() -> None:
    found = sql(rule("name", partitioned=True))
    assert "UPDATE public.users AS t" in found
    assert "ONLY" not in found


def test_a_foreign_key_is_checked_if_one_of_its_columns_is_replaced() -> None:
    key = {
        "name": "posts_user",
        "from": "public.posts",
        "to": "public.users",
        "from_table": "public.posts",
        "to_table": "public.users",
        "from_columns": ["author"],
        "to_columns": ["name"],
    }
    assert "t.name = f.author" in sql(rule("name"), references=[key])
    assert "t.name = f.author" in sql(rule("author", table="public.posts"), references=[key])
    assert "t.name = f.author" not in sql(rule("author"), references=[key])


def test_triggers_that_always_fire_are_off_meanwhile() -> None:
    trigger = {"table": "public.users", "name": "audit", "kind": "TRIGGER", "mode": "ALWAYS"}
    found = sql(rule("name"), triggers=[trigger], unchecked=["public.late"])
    off, on = (
        "ALTER TABLE public.users DISABLE TRIGGER audit",
        "ALTER TABLE public.users ENABLE ALWAYS TRIGGER audit",
    )
    assert found.index(off) < found.index("UPDATE") < found.index(on)
    assert "REINDEX INDEX public.late" in found


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            'ERROR: syntax error at or near "x" LINE 12: x ^ QUERY: x CONTEXT: y',
            'syntax error at or near "x" in line 12: correct the rules and run it again.',
        ),
        # Details have values of rows.
        (
            'ERROR: duplicate key value violates unique constraint "u" DETAIL: Key (name)=(Ada) exists.',
            'duplicate key value violates unique constraint "u": let the expression contain the primary key,'
            " so that its values differ.",
        ),
        ("ERROR: relation is locked.", "relation is locked: correct the rules and run it again."),
        ("the connection was lost", "the connection was lost"),
    ],
)
def test_an_error_of_postgres_becomes_a_sentence(said: str, sentence: str) -> None:
    assert anonymise.reason(said, lines=True) == sentence
