"""Lint the SQL of a migration: find statements that block or break the release that still serves."""

from __future__ import annotations

import re
from typing import Any

# Pattern of the statement, the word that allows it, and the advice.
RULES = (
    (r"DROP (TABLE|COLUMN|SCHEMA|VIEW|TYPE)\b|RENAME\b|TRUNCATE\b|DROP CONSTRAINT .* CASCADE", "drop",
     "removes what the live release may use: stop using it in one release, drop it in the next"),
    (r"ADD COLUMN (?!.*\bDEFAULT\b).*\bNOT NULL\b", "not-null",
     "fails on existing rows and on inserts of the live release: give it a server default"),
    (r"ALTER COLUMN \S+ SET NOT NULL", "not-null",
     "scans the table under a lock: add a CHECK (… IS NOT NULL) NOT VALID, validate it, then set it"),
    (r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)", "index",
     "blocks writers during the build: postgresql_concurrently=True in an autocommit_block"),
    (r"DROP INDEX (?!CONCURRENTLY)", "index",
     "waits for and blocks all other queries: postgresql_concurrently=True in an autocommit_block"),
    (r"ALTER COLUMN \S+ (SET DATA )?TYPE\b|VACUUM FULL|^CLUSTER\b|SET (UN)?LOGGED|SET TABLESPACE", "rewrite",
     "rewrites the table under a lock: add a new column, fill it in batches, switch over"),
    (r"ADD (CONSTRAINT \S+ )?(FOREIGN KEY|CHECK)\b(?!.*NOT VALID)", "constraint",
     "checks every row under a lock: add it NOT VALID, validate it in a revision of its own"),
    (r"ADD (CONSTRAINT \S+ )?(UNIQUE|PRIMARY KEY)\b(?!.*USING INDEX)", "constraint",
     "builds an index under a lock: build it concurrently, then add the constraint USING INDEX"),
    (r"^LOCK TABLE", "lock", "blocks the live release: remove it"),
)  # fmt: skip


HEADER = re.compile(r"^-- Running upgrade (.*?) ?-> (\S+)$", re.MULTILINE)
NAME = r'(?:"[^"]+"|[^\s(;"]+)+'


def revisions(plan: str) -> list[tuple[str, str]]:
    """Return the plan's revisions in order, each with its predecessor; "" is an empty database."""
    return [(after, before) for before, after in HEADER.findall(plan)]


def is_empty(plan: str) -> bool:
    """Return whether a plan changes nothing."""
    statements = re.sub(r"^--.*$", "", plan, flags=re.MULTILINE).split(";")
    return not revisions(plan) and {text.strip() for text in statements} <= {"", "BEGIN", "COMMIT"}


def start_of(plan: str) -> str:
    """Return the database's revision before a plan; several are separated by commas."""
    if found := re.search(r"^-- Database at (.*)$", plan, re.MULTILINE):
        return found[1]
    steps = revisions(plan)
    return (steps[0][1] if steps else "") or "base"


def annotate(plan: str, attributes: dict[str, dict[str, Any]]) -> str:
    """Add what the operator says of revisions to the plan, as comments like their own."""

    def comments(header: re.Match[str]) -> str:
        said = attributes.get(header[2], {})
        lines = [f"-- allow: {word}" for word in said.get("allow", [])]
        lines += [f"-- not {word}" for word in ("compatible", "reversible") if not said.get(word, True)]
        return "\n".join([header[0], *lines])

    return HEADER.sub(comments, plan)


def parts(plan: str) -> list[tuple[str, str]]:
    """Return each revision with its text; a plan without headers is one part without a name."""
    pieces = HEADER.split(plan)
    return list(zip(pieces[2::3], pieces[3::3], strict=True)) or [("", plan)]


def faults(plan: str) -> list[str]:
    """Return a sentence for each dangerous statement that its revision does not allow."""
    if revisions(plan) and start_of(plan) == "base":
        # No release uses an empty database.
        return []
    found: list[str] = []
    fresh: set[str] = set()
    for revision, text in parts(plan):
        allowed = set(re.findall(r"^-- allow: (\S+)$", text, re.MULTILINE))
        statements = re.sub(r"^--.*$", "", text, flags=re.MULTILINE).split(";")
        for statement in (" ".join(words.split()) for words in statements):
            fresh |= set(re.findall(rf"^CREATE TABLE (?:IF NOT EXISTS )?({NAME})", statement, re.IGNORECASE))
            table = re.search(
                rf"^(?:ALTER|DROP) TABLE (?:IF EXISTS |ONLY )*({NAME})| ON ({NAME})", statement, re.IGNORECASE
            )
            # The live release does not use a table that this plan creates.
            if table and (table[1] or table[2]) in fresh:
                continue
            found += [
                f"{f'Revision {revision}' if revision else 'The migration'}: `{statement[:80]}` {advice}"
                f' (or accept it: allow = {{"{word}"}} in the revision or in migrate_revisions)'
                for pattern, word, advice in RULES
                if word not in allowed and re.search(pattern, statement, re.IGNORECASE)
            ]
    return found


def rollback_barrier(plan: str) -> str:
    """Return the first revision of a plan that earlier releases cannot work with, and why."""
    for revision, text in parts(plan):
        if words := re.findall(r"^-- not (compatible|reversible)$", text, re.MULTILINE):
            return f"{revision}, which is not {' and not '.join(words)}"
    return ""
