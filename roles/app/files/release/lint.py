"""Lint the SQL of a migration: find statements that block or break the release that still serves."""

from __future__ import annotations

import re

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


def revisions(plan: str) -> list[tuple[str, str]]:
    """Return the plan's revisions in order, each with its predecessor; "" is an empty database."""
    found = re.findall(r"^-- Running upgrade (\S*) -> (\S+)$", plan, re.MULTILINE)
    return [(after, before) for before, after in found]


def faults(plan: str) -> list[str]:
    """Return a sentence for each dangerous statement that its revision does not allow."""
    found: list[str] = []
    fresh: set[str] = set()
    for part in re.split(r"^-- Running upgrade .*?-> ", plan, flags=re.MULTILINE)[1:]:
        revision, _, part = part.partition("\n")
        allowed = set(re.findall(r"^-- allow: (\S+)$", part, re.MULTILINE))
        statements = re.sub(r"^--.*$", "", part, flags=re.MULTILINE).split(";")
        for statement in (" ".join(text.split()) for text in statements):
            fresh |= set(re.findall(r"^CREATE TABLE (?:IF NOT EXISTS )?(\S+)", statement))
            table = re.search(r"^ALTER TABLE (?:ONLY )?(\S+)| ON (\S+)", statement)
            # The live release does not use a table that this plan creates.
            if table and (table[1] or table[2]) in fresh:
                continue
            found += [
                f"Revision {revision}: `{statement[:80]}` {advice}"
                f' (or accept it: allow = {{"{word}"}} in the revision)'
                for pattern, word, advice in RULES
                if word not in allowed and re.search(pattern, statement, re.IGNORECASE)
            ]
    return found


def rollback_barrier(plan: str) -> str:
    """Return the first revision of a plan that earlier releases cannot work with, and why."""
    for part in re.split(r"^-- Running upgrade .*?-> ", plan, flags=re.MULTILINE)[1:]:
        if words := re.findall(r"^-- not (compatible|reversible)$", part, re.MULTILINE):
            return f"{part.split()[0]}, which is not {' and not '.join(words)}"
    return ""
