"""What the tables of a cluster hold at one position of the WAL, so that a restored copy can be compared."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import Cluster, Session

# The position is exact if nothing writes around it, for which a busy server needs some attempts.
ATTEMPTS = 400
# The largest tables, shared by the databases: a manifest is one argument of pgBackRest, 128 KiB at most.
KEPT_TABLES = 800
PAUSE_SECONDS = 0.02

TABLES = r"""
SELECT json_object_agg(quote_ident(nspname) || '.' || quote_ident(relname), pg_relation_size(c.oid))
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND relispopulated
  AND nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'
  AND NOT EXISTS (
    SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
"""
# Values as text must not depend on settings of a server or a database.
AS_TEXT = """
SET LOCAL datestyle = 'ISO'; SET LOCAL timezone = 'UTC'; SET LOCAL extra_float_digits = 1;
SET LOCAL bytea_output = 'hex'; SET LOCAL intervalstyle = 'postgres';
"""

Tables = dict[str, tuple[int, str, float]]  # {name: (rows, checksum, percentage of the blocks that was read)}


def make_manifest(cluster: Cluster, checksum_bytes: int) -> dict[str, Any]:
    """Return {position, time, tables: {database: {table: [rows, checksum, share]}}}, or {reason} for none.

    Of a table above checksum_bytes, a sample of its blocks is read.
    """
    with contextlib.ExitStack() as stack:
        sessions = {name: stack.enter_context(Session(cluster, name)) for name in cluster.databases()}
        position = exact_position(cluster, list(sessions.values()))
        moment = time.time()
        if not position:
            return {"reason": "no moment without an open transaction that writes was found", "tables": {}}
        tables = {}
        kept = KEPT_TABLES // len(sessions)
        for database, session in sessions.items():
            sizes = dict(sorted(table_sizes(session).items(), key=lambda entry: -entry[1])[:kept])
            shares = {name: min(100.0, 100.0 * checksum_bytes / max(size, 1)) for name, size in sizes.items()}
            if found := read_tables(session, shares):
                tables[database] = found
    return {"position": position, "time": moment, "tables": tables}


def exact_position(cluster: Cluster, sessions: Sequence[Session]) -> int:
    """Begin transactions that all see the state at one position, and return it in bytes; 0 if that failed.

    A snapshot is the state at a position if no transaction with writes was open then, and none has begun
    or ended between the two.
    """
    for _ in range(ATTEMPTS):
        for session in sessions:
            session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        seen = {session.run("SELECT pg_current_snapshot()") for session in sessions}
        position = cluster.position
        seen.add(cluster.query("SELECT pg_current_snapshot()"))
        # The lowest open transaction, the next one, and those in between.
        lowest, following, _ = min(seen).split(":")
        if len(seen) == 1 and lowest == following:
            return position
        for session in sessions:
            session.run("ROLLBACK")
        time.sleep(PAUSE_SECONDS)
    return 0


def table_sizes(session: Session) -> dict[str, int]:
    """Return the bytes of each table of a database that its own users can have filled."""
    found: dict[str, int] = json.loads(session.run(TABLES) or "{}")
    return found


def read_tables(session: Session, shares: Mapping[str, float]) -> Tables:
    """Return the rows and a checksum of tables, of a share (in percent) of their blocks."""
    if not shares:
        return {}
    names = list(shares)
    selects = []
    for index, name in enumerate(names):
        sample = f" TABLESAMPLE SYSTEM ({shares[name]}) REPEATABLE (0)" if shares[name] < 100 else ""
        # The sum does not depend on the order of the rows.
        checksum = "coalesce(sum(hashtextextended(t::text, 0)), 0)"
        selects.append(f"SELECT {index}, count(*), {checksum} FROM {name} t{sample};")  # noqa: S608
    found = [row.split("\t") for row in session.run(AS_TEXT + "\n".join(selects)).splitlines()]
    return {names[int(i)]: (int(count), checksum, shares[names[int(i)]]) for i, count, checksum in found}


def differences(manifest: Mapping[str, Any], cluster: Cluster) -> list[str]:
    """Return a sentence for each table of a manifest that differs in a cluster at its position."""
    found = []
    present_databases = cluster.databases()
    for database, tables in manifest["tables"].items():
        if database not in present_databases:
            found.append(f"the database {database} is missing")
            continue
        with Session(cluster, database) as session:
            session.run("BEGIN")
            present = table_sizes(session)
            shares = {name: entry[2] for name, entry in tables.items() if name in present}
            actual = read_tables(session, shares)
        found += compare_tables(database, tables, actual)
    return found


def compare_tables(database: str, expected: Mapping[str, Sequence[Any]], actual: Tables) -> list[str]:
    """Return a sentence for each table that differs from (rows, checksum, …)."""
    found = []
    for name, (rows, checksum, _) in expected.items():
        if name not in actual:
            found.append(f"{database}: {name} is missing")
        elif actual[name][0] != rows:
            found.append(f"{database}: {name} has {actual[name][0]} rows instead of {rows}")
        elif actual[name][1] != checksum:
            found.append(f"{database}: {name} has other contents in its {rows} rows")
    return found
