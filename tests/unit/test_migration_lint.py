"""The migration linter: dangerous and harmless statements."""

from __future__ import annotations

import importlib.util

import pytest

from tests.lab import ROOT

SPEC = importlib.util.spec_from_file_location("lint", ROOT / "roles/app/files/release/lint.py")
assert SPEC
assert SPEC.loader
lint = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(lint)

HEAD = "BEGIN;\n\n-- Running upgrade 0004 -> 0005\n"

DANGEROUS = {
    "ALTER TABLE products DROP COLUMN note": "drop",
    "DROP TABLE products": "drop",
    "ALTER TABLE products RENAME note TO remark": "drop",
    "ALTER TABLE products ADD COLUMN note TEXT NOT NULL": "not-null",
    "ALTER TABLE products ALTER COLUMN note SET NOT NULL": "not-null",
    "CREATE INDEX ix_products_note ON products (note)": "index",
    "CREATE UNIQUE INDEX ix_products_note ON products (note)": "index",
    "DROP INDEX ix_products_note": "index",
    "ALTER TABLE products ALTER COLUMN stock TYPE BIGINT": "rewrite",
    "VACUUM FULL products": "rewrite",
    "ALTER TABLE products ADD CONSTRAINT fk FOREIGN KEY(maker) REFERENCES makers (id)": "constraint",
    "ALTER TABLE products ADD CONSTRAINT ck CHECK (stock >= 0)": "constraint",
    "ALTER TABLE products ADD CONSTRAINT uq UNIQUE (note)": "constraint",
    "LOCK TABLE products": "lock",
}
HARMLESS = (
    "ALTER TABLE products ADD COLUMN note TEXT",
    "ALTER TABLE products ADD COLUMN note TEXT DEFAULT '' NOT NULL",
    "CREATE INDEX CONCURRENTLY ix_products_note ON products (note)",
    "DROP INDEX CONCURRENTLY IF EXISTS ix_products_note",
    "ALTER TABLE products ADD CONSTRAINT ck CHECK (stock >= 0) NOT VALID",
    "ALTER TABLE products VALIDATE CONSTRAINT ck",
    "ALTER TABLE products ADD CONSTRAINT uq UNIQUE USING INDEX ix_products_note",
    "CREATE TABLE makers (id BIGINT NOT NULL);\nCREATE INDEX ix_makers ON makers (id)",
    'CREATE TABLE shop."Makers" (id BIGINT);\nDROP TABLE shop."Makers"',
    "UPDATE alembic_version SET version_num='0005' WHERE alembic_version.version_num = '0004'",
)


@pytest.mark.parametrize(("statement", "word"), DANGEROUS.items())
def test_a_dangerous_statement_is_refused_unless_allowed(statement: str, word: str) -> None:
    (fault,) = lint.faults(f"{HEAD}\n{statement};\n\nCOMMIT;\n")
    assert fault.startswith(f"Revision 0005: `{statement[:80]}` ")
    assert f'allow = {{"{word}"}}' in fault
    assert lint.faults(f"{HEAD}-- allow: {word}\n\n{statement};\n\nCOMMIT;\n") == []


@pytest.mark.parametrize("statement", HARMLESS)
def test_a_harmless_statement_passes(statement: str) -> None:
    assert lint.faults(f"{HEAD}\n{statement};\n\nCOMMIT;\n") == []


def test_a_revision_allows_only_its_own_statements() -> None:
    plan = f"{HEAD}-- allow: drop\n\n-- Running upgrade 0005 -> 0006\n\nDROP TABLE products;\n"
    assert len(lint.faults(plan)) == 1


def test_an_empty_database_has_no_live_release() -> None:
    plan = "-- Running upgrade  -> 0001\nSELECT 1;\n-- Running upgrade 0001 -> 0002\nDROP TABLE b"
    assert lint.faults(plan) == []
    assert lint.faults(f"-- Database at base\n{HEAD}DROP TABLE b;") == []


def test_a_plan_without_headers_is_judged_too() -> None:
    (fault,) = lint.faults("DROP TABLE products;")
    assert fault.startswith("The migration: `DROP TABLE products` removes")
    assert not lint.is_empty("DROP TABLE products;")
    assert lint.is_empty("BEGIN;\n\n-- nothing\nCOMMIT;\n")


def test_an_operator_speaks_for_a_revision() -> None:
    plan = f"{HEAD}DROP TABLE products;\n-- Running upgrade 0005 -> 0006\nDROP TABLE makers;\n"
    said = lint.annotate(plan, {"0005": {"allow": ["drop"], "reversible": False}})
    (fault,) = lint.faults(said)
    assert fault.startswith("Revision 0006")
    assert lint.rollback_barrier(said) == "0005, which is not reversible"


def test_a_merge_has_several_predecessors() -> None:
    plan = "-- Database at b2, c3\n-- Running upgrade b2, c3 -> d4\n"
    assert lint.revisions(plan) == [("d4", "b2, c3")]
    assert lint.start_of(plan) == "b2, c3"


def test_revisions_and_rollback_barrier_of_a_plan() -> None:
    plan = f"-- Running upgrade  -> 0004\n\n{HEAD}-- not compatible\n"
    assert lint.revisions(plan) == [("0004", ""), ("0005", "0004")]
    assert lint.rollback_barrier(plan) == "0005, which is not compatible"
    assert lint.rollback_barrier(HEAD) == ""
