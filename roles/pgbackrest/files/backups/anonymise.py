"""Replace the personal data of a restored copy by rules, and dump its databases for staging."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import Copy, copy_of, free_bytes
from commands import ACCOUNT, as_postgres
from errors import BackupError
from repository import Repository
from restore import Beside
from targets import Target

PORT = 5436
FOLDER = "anonymised"
HEADER = re.compile(r"^--\s*database:\s*(.*?)\s*$", re.IGNORECASE)
HEADER_FORM = "-- database: NAME"
# A former value as a part of a new one is found from this length; shorter ones are in everything.
PART_CHARACTERS = 5
SCHEMA = "fastmetal_anonymise"
# A column of another type must be named. Arrays, domains and ranges count as the type that they are made of.
PLAIN_TYPES = (
    *("bool", "int2", "int4", "int8", "float4", "float8", "numeric", "money", "uuid", "oid"),
    *("date", "time", "timetz", "timestamp", "timestamptz", "interval"),
)
EMPTY_VALUES = ("", "{}", "[]", "null", '""', "\\x")
# No trigger fires, no rule of a table applies.
BEGIN = "BEGIN READ WRITE; SET LOCAL session_replication_role = replica"
DATABASES = """
SELECT coalesce(json_agg(datname ORDER BY datname), '[]') FROM pg_database
WHERE datallowconn AND datdba <> 10
"""

# Columns that a rule may name. A partition is changed by its table; a generated column follows the others.
# Of the tables of extensions, those that pg_dump dumps.
COLUMNS = rf"""
CREATE TEMP TABLE fastmetal_columns ON COMMIT DROP AS
WITH RECURSIVE part (type, base) AS (
  SELECT DISTINCT atttypid, atttypid FROM pg_attribute WHERE atttypid <> 0
  UNION
  SELECT type, CASE typtype
    WHEN 'd' THEN typbasetype
    WHEN 'r' THEN (SELECT rngsubtype FROM pg_range WHERE rngtypid = base)
    WHEN 'm' THEN (SELECT rngsubtype FROM pg_range WHERE rngmultitypid = base)
    ELSE typelem END
  FROM part JOIN pg_type t ON t.oid = base
  WHERE typtype IN ('d', 'r', 'm') OR (typcategory = 'A' AND typelem <> 0 AND typlen = -1)
)
SELECT c.oid AS relation, format('%I.%I', nspname, relname) AS "table", relkind = 'p' AS partitioned,
  attname AS name, format_type(atttypid, -1) AS type, attgenerated <> '' AS generated,
  attgenerated = '' AND NOT EXISTS (
    SELECT FROM part JOIN pg_type t ON t.oid = base
    WHERE part.type = atttypid
      AND (typtype = 'e' OR base = ANY ('{{{",".join(PLAIN_TYPES)}}}'::regtype[]::oid[]))
  ) AS required
FROM pg_class c
JOIN pg_namespace n ON n.oid = relnamespace
LEFT JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
WHERE relkind IN ('r', 'p') AND NOT relispartition AND relpersistence <> 't'
  AND nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'
  AND (c.oid = ANY (SELECT unnest(extconfig) FROM pg_extension) OR NOT EXISTS (
    SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e'));
"""  # noqa: S608

# What the rules call. They only note what is to be done, in a transaction that cannot write to tables.
FUNCTIONS = f"""
CREATE TEMP TABLE fastmetal_rules (
  relation oid, "table" text, partitioned boolean, action text, name name, type text, expression text,
  constant boolean, allow text[]) ON COMMIT DROP;
CREATE SCHEMA {SCHEMA};
CREATE FUNCTION {SCHEMA}.note(does text, target text, named text, what text, allowed text[]) RETURNS void
LANGUAGE plpgsql AS $function$
#variable_conflict use_column
DECLARE
  this record;
  plan json;
  fixed boolean := false;
BEGIN
  SELECT * INTO this FROM pg_temp.fastmetal_columns WHERE relation = to_regclass(target) LIMIT 1;
  IF NOT FOUND THEN
    RAISE '% is not a table of this database, or it is a partition', target;
  END IF;
  IF does <> 'empty' THEN
    SELECT * INTO this FROM pg_temp.fastmetal_columns WHERE relation = to_regclass(target) AND name = named;
    IF NOT FOUND THEN
      RAISE '% has no column %', target, named;
    END IF;
  END IF;
  IF EXISTS (
    SELECT FROM pg_temp.fastmetal_rules
    WHERE relation = this.relation AND (does = 'empty' OR action = 'empty' OR name = named)
  ) THEN
    RAISE '% has two rules', concat_ws('.', this."table", named);
  END IF;
  -- The copy must not write to another server.
  IF does <> 'keep' AND EXISTS (SELECT FROM pg_inherits JOIN pg_class ON oid = inhrelid
             WHERE relkind = 'f' AND inhparent IN (SELECT relid FROM pg_partition_tree(this.relation))) THEN
    RAISE '% has a partition on another server', this."table";
  END IF;
  IF does = 'anonymise' THEN
    IF this.generated THEN
      RAISE '%.% is generated from other columns and takes no rule', this."table", named;
    END IF;
    BEGIN
      EXECUTE format(E'EXPLAIN SELECT CAST((%s\\n) AS %s) FROM %s', what, this.type, this."table");
    EXCEPTION WHEN OTHERS THEN
      RAISE 'the expression for %.% fails (%)', this."table", named, SQLERRM;
    END;
    -- Without the table it is planned only if it names no column, and as one node only if it reads no table.
    BEGIN
      EXECUTE format(E'EXPLAIN (FORMAT JSON) SELECT (%s\\n)', what) INTO plan;
      fixed := plan -> 0 -> 'Plan' ->> 'Node Type' = 'Result' AND plan -> 0 -> 'Plan' -> 'Plans' IS NULL;
    EXCEPTION WHEN OTHERS THEN
      fixed := false;
    END;
  END IF;
  INSERT INTO pg_temp.fastmetal_rules VALUES (
    this.relation, this."table", this.partitioned, does, named, this.type, what, fixed, allowed);
END
$function$;
CREATE FUNCTION {SCHEMA}.anonymise("table" text, "column" text, expression text, allow text[] DEFAULT '{{}}')
RETURNS void LANGUAGE sql AS $function$
  SELECT {SCHEMA}.note('anonymise', $1, $2, $3, $4)
$function$;
CREATE FUNCTION {SCHEMA}.keep("table" text, VARIADIC columns text[]) RETURNS void LANGUAGE sql AS $function$
  SELECT {SCHEMA}.note('keep', $1, name, NULL, NULL) FROM unnest($2) name
$function$;
CREATE FUNCTION {SCHEMA}.empty("table" text) RETURNS void LANGUAGE sql AS $function$
  SELECT {SCHEMA}.note('empty', $1, NULL, NULL, NULL)
$function$;
CREATE FUNCTION pg_temp.named(oid) RETURNS text LANGUAGE sql AS $function$
  SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
  WHERE c.oid = $1
$function$;
CREATE FUNCTION pg_temp.columns(oid, int2[]) RETURNS json LANGUAGE sql AS $function$
  SELECT json_agg(quote_ident(attname) ORDER BY place) FROM unnest($2) WITH ORDINALITY AS key (number, place)
  JOIN pg_attribute ON attrelid = $1 AND attnum = number
$function$;
DO $$ BEGIN
  PERFORM set_config('search_path',
    concat_ws(', ', '{SCHEMA}', nullif(current_setting('search_path'), '')), true);
END $$;
SET TRANSACTION READ ONLY;
"""  # noqa: S608
NOTED = """
SELECT json_build_object(
  'rules', (
    SELECT coalesce(json_agg(json_build_object(
      'table', "table", 'partitioned', partitioned, 'action', action,
      'name', name, 'column', quote_ident(name), 'type', type,
      'expression', expression, 'constant', constant, 'allow', allow)), '[]')
    FROM pg_temp.fastmetal_rules),
  'missing', (
    SELECT coalesce(json_object_agg("table", names), '{}') FROM (
      SELECT c."table", json_agg(c.name ORDER BY c.name) AS names FROM pg_temp.fastmetal_columns c
      WHERE required AND NOT EXISTS (
        SELECT FROM pg_temp.fastmetal_rules r
        WHERE r.relation = c.relation AND (r.action = 'empty' OR r.name = c.name))
      GROUP BY 1 ORDER BY 1) of_tables),
  'references', (
    SELECT coalesce(json_agg(json_build_object(
      'name', conname, 'from', pg_temp.named(conrelid), 'to', pg_temp.named(confrelid),
      -- A partition is changed by its table.
      'from_table', pg_temp.named(coalesce(pg_partition_root(conrelid), conrelid)),
      'to_table', pg_temp.named(coalesce(pg_partition_root(confrelid), confrelid)),
      'from_columns', pg_temp.columns(conrelid, conkey),
      'to_columns', pg_temp.columns(confrelid, confkey))), '[]')
    FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND convalidated))
"""

# Triggers and rules that session_replication_role does not stop, and unique indexes that it leaves unchecked.
QUIET = """
SELECT json_build_object(
  'triggers', (
    SELECT coalesce(json_agg(json_build_object(
      'table', format('%I.%I', nspname, relname), 'name', quote_ident(tgname), 'kind', 'TRIGGER',
      'mode', CASE tgenabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END)), '[]')
    FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid JOIN pg_namespace n ON n.oid = relnamespace
    WHERE tgenabled IN ('A', 'R') AND NOT tgisinternal AND relkind IN ('r', 'p') AND tgparentid = 0),
  'rules', (
    SELECT coalesce(json_agg(json_build_object(
      'table', format('%I.%I', nspname, relname), 'name', quote_ident(rulename), 'kind', 'RULE',
      'mode', CASE ev_enabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END)), '[]')
    FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class JOIN pg_namespace n ON n.oid = relnamespace
    WHERE ev_enabled IN ('A', 'R') AND relkind IN ('r', 'p')),
  'unchecked', (
    SELECT coalesce(json_agg(format('%I.%I', nspname, relname)), '[]')
    FROM pg_index JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = relnamespace
    WHERE NOT indimmediate AND relkind = 'i' AND nspname NOT LIKE 'pg_toast%'),
  'mappings', (
    SELECT coalesce(json_agg(format('%s SERVER %I',
      CASE umuser WHEN 0 THEN 'PUBLIC' ELSE quote_ident(usename) END, srvname)), '[]') FROM pg_user_mappings))
"""


@dataclass(frozen=True)
class Noted:
    """The rules of a database. references: its foreign keys; missing: {table: [columns without a rule]}."""

    rules: list[dict[str, Any]]
    missing: dict[str, list[str]]
    references: list[dict[str, Any]]

    @property
    def replaced(self) -> dict[str, list[dict[str, Any]]]:
        """Return {table: [its rules that replace values]}."""
        found: dict[str, list[dict[str, Any]]] = {}
        for rule in self.rules:
            if rule["action"] == "anonymise":
                found.setdefault(rule["table"], []).append(rule)
        return found

    @property
    def emptied(self) -> list[dict[str, Any]]:
        """Return the rules that empty a table."""
        return [rule for rule in self.rules if rule["action"] == "empty"]


class Rules:
    """A file of rules: SQL for each database, after a line that names it."""

    def __init__(self, text: str) -> None:
        self.blocks: dict[str, str] = {}
        name = ""
        for number, line in enumerate(text.splitlines()):
            header = HEADER.match(line)
            if header:
                name = header[1]
                if not name:
                    raise BackupError(f'The rules have "{HEADER_FORM}" without a name in line {number + 1}.')
                if name in self.blocks:
                    raise BackupError(f"The rules have two blocks for the database {name}: make it one.")
                # Messages of Postgres count the lines of the file.
                self.blocks[name] = "\n" * number
            elif name:
                self.blocks[name] += line
            elif line.strip() and not line.lstrip().startswith("--"):
                raise BackupError(f'The rules begin before a line "{HEADER_FORM}", in line {number + 1}.')
            if name:
                self.blocks[name] += "\n"
        if not self.blocks:
            raise BackupError(f'The rules have no line "{HEADER_FORM}".')


def read_rules(file: Path) -> Rules:
    """Return the rules of a file."""
    try:
        return Rules(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BackupError(f"The rules in {file} cannot be read: {error}.") from error


class Anonymised:
    """A restored copy that becomes dumps without personal data, and is removed."""

    def __init__(self, settings: Mapping[str, Any], repository: Repository, rules: Rules) -> None:
        self.settings = settings
        self.repository = repository
        self.rules = rules
        self.copy: Copy = copy_of(settings, "anonymise", PORT)
        self.folder = Path(settings["state"]) / FOLDER
        self.draft = self.folder.with_name(f"{FOLDER}.new")

    def run(self, target: Target) -> dict[str, Any]:
        """Restore a copy, replace its personal data, dump its databases, and return what was done."""
        begun = time.monotonic()
        try:
            restored = self._start(target)
            noted = self._read()
            self._require_space()
            for database, rules in noted.items():
                self._replace(database, rules)
            dumps = self._dump(noted)
        except BackupError as error:
            raise BackupError(f"Nothing was delivered, and the copy is removed: {error}") from error
        finally:
            self.copy.remove()
            shutil.rmtree(self.draft, ignore_errors=True)
        return {
            "backup": restored["backup"],
            "moment": restored["moment"],
            "dumps": dumps,
            "columns": sum(len(found) for rules in noted.values() for found in rules.replaced.values()),
            "emptied": sum(len(rules.emptied) for rules in noted.values()),
            "seconds": round(time.monotonic() - begun, 1),
        }

    def _start(self, target: Target) -> dict[str, Any]:
        """Start the copy, without touching the one that an operator looks at."""
        beside = Beside(self.settings, self.repository)
        beside.copy = self.copy
        return beside.run(target)

    def _query(self, database: str, sql: str, *, lines: bool = False) -> str:
        """Return the answer of the copy; raise BackupError with a sentence for the operator."""
        try:
            return self.copy.query(f"SET client_min_messages = error;\n{sql}", database)
        except BackupError as error:
            raise BackupError(f"{database}: {reason(str(error), lines=lines)}") from error

    def _read(self) -> dict[str, Noted]:
        """Return the rules of every database; raise BackupError if they do not fit, or a column has none."""
        databases = json.loads(self._query("postgres", DATABASES))
        unknown = [name for name in self.rules.blocks if name not in databases]
        if unknown:
            raise BackupError(
                f"the rules name the database {unknown[0]}, and the copy has {listed(databases) or 'none'}."
            )
        noted = {name: self._note(name, self.rules.blocks.get(name, "")) for name in databases}
        missing = [
            f"{name}: {listed(f'{table} ({listed(columns)})' for table, columns in rules.missing.items())}"
            for name, rules in noted.items()
            if rules.missing
        ]
        if missing:
            raise BackupError(
                f"the rules do not name {'; '.join(missing)}: add anonymise, keep or empty for each."
            )
        for name, rules in noted.items():
            emptied = [rule["table"] for rule in rules.emptied]
            for key in rules.references:
                if key["to_table"] in emptied and key["from_table"] not in emptied:
                    raise BackupError(
                        f"{name}: the rules empty {key['to']}, and {key['from']} refers to it: empty both."
                    )
        return noted

    def _note(self, database: str, block: str) -> Noted:
        """Return the rules of a database, for which the block runs in a transaction that changes nothing."""
        # As a string, in which psql has no commands of its own, and which cannot end the transaction.
        sql = f"{BEGIN};{COLUMNS}{FUNCTIONS}{as_string(block)};{NOTED};ROLLBACK;"
        found = json.loads(self._query(database, sql, lines=True))
        return Noted(found["rules"], found["missing"], found["references"])

    def _require_space(self) -> None:
        """Raise BackupError if the file system of the data has no room for new versions of all rows."""
        size = int(self._query("postgres", "SELECT sum(pg_database_size(oid)) FROM pg_database"))
        free = free_bytes(self.copy.data.parent)
        if free < 2 * size:
            raise BackupError(
                f"replacing needs {2 * size >> 20} MiB in {self.copy.data.parent},"
                f" and {free >> 20} MiB are free: make room."
            )

    def _replace(self, database: str, noted: Noted) -> None:
        """Replace the values of a database; raise BackupError if a former one is left."""
        quiet = json.loads(self._query(database, QUIET))
        self._query(database, replacement(noted, quiet))

    def _dump(self, databases: Iterable[str]) -> list[str]:
        """Dump databases and return the files, which replace those of an earlier run."""
        shutil.rmtree(self.draft, ignore_errors=True)
        self.draft.mkdir(mode=0o700)
        shutil.chown(self.draft, ACCOUNT, ACCOUNT)
        names = []
        for database in databases:
            file = self.draft / f"{database.replace('/', '_')}.dump"
            # pg_dump keeps the mode of a file that exists.
            file.touch(mode=0o600)
            shutil.chown(file, ACCOUNT, ACCOUNT)
            as_postgres(
                *(Path(self.settings["binaries"]) / "pg_dump", "--format=custom", f"--file={file}"),
                # Large objects have no column that a rule could name, subscriptions contain passwords.
                *("--no-blobs", "--no-subscriptions"),
                *("-h", self.copy.socket, "-p", str(self.copy.port), "-d", database),
            )
            names.append(file.name)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.draft.rename(self.folder)
        return [str(self.folder / name) for name in names]


def replacement(noted: Noted, quiet: Mapping[str, Any]) -> str:
    """Return the SQL that replaces the values of a database, and rolls back if a check finds a row."""
    stopped = [*quiet["triggers"], *quiet["rules"]]
    sql = [BEGIN, f"CREATE SCHEMA {SCHEMA}"]
    # All new values first: an expression sees former values only, also those of other tables.
    sql += [as_string(rows_of(n, rules)) for n, rules in enumerate(noted.replaced.values())]
    sql += [f"DROP USER MAPPING FOR {mapping}" for mapping in quiet["mappings"]]
    sql += [f"ALTER TABLE {one['table']} DISABLE {one['kind']} {one['name']}" for one in stopped]
    if noted.emptied:
        sql.append("TRUNCATE " + ", ".join(source(rule) for rule in noted.emptied))
    checks = []
    for number, (table, rules) in enumerate(noted.replaced.items()):
        values = ", ".join(f"{rule['column']} = r.new{n}" for n, rule in enumerate(rules))
        sql.append(
            f"UPDATE {source(rules[0])} AS t SET {values} FROM {SCHEMA}.rows{number} r"  # noqa: S608
            " WHERE t.ctid = r.place AND t.tableoid = r.part"
        )
        for n, rule in enumerate(rules):
            if not rule["constant"]:
                checks += left(f"{SCHEMA}.rows{number}", n, rule, f"{table}.{rule['name']}")
    checks += [orphans(key) for key in noted.references if touches(noted, key)]
    sql += [f"ALTER TABLE {one['table']} ENABLE {one['mode']} {one['kind']} {one['name']}" for one in stopped]
    # Unique constraints that are deferrable are checked by a trigger, which does not fire.
    sql += [f"REINDEX INDEX {index}" for index in quiet["unchecked"]]
    return ";\n".join([*sql, *checks, f"DROP SCHEMA {SCHEMA} CASCADE", "COMMIT;"])


def rows_of(number: int, rules: list[dict[str, Any]]) -> str:
    """Return the SQL that notes the former and the new values of a table. NULL stays NULL."""
    pairs = [
        f"{comparable(rule['column'])} AS old{n}, CASE WHEN {rule['column']} IS NOT NULL"
        # The expression may end with a comment.
        f" THEN CAST(({rule['expression']}\n) AS {rule['type']}) END AS new{n}"
        for n, rule in enumerate(rules)
    ]
    return (
        f"CREATE UNLOGGED TABLE {SCHEMA}.rows{number} AS"  # noqa: S608
        f" SELECT tableoid AS part, ctid AS place, {', '.join(pairs)} FROM {source(rules[0])}"
    )


def left(rows: str, number: int, rule: Mapping[str, Any], name: str) -> list[str]:
    """Return the SQL of the two checks of a replaced column, without regard to case."""
    new = comparable(f"new{number}")
    exempt = ", ".join(comparable(literal(value)) for value in [*EMPTY_VALUES, *(rule["allow"] or [])])
    return [
        refuse_rows(
            f"FROM (SELECT DISTINCT {comparable(rule['column'])} AS value FROM {source(rule)}) AS present"  # noqa: S608
            f" WHERE value NOT IN ({exempt}) AND EXISTS (SELECT FROM {rows} WHERE old{number} = value)",
            f"values of {name} are former values of the column",
        ),
        refuse_rows(
            f"FROM {rows} WHERE length(old{number}) >= {PART_CHARACTERS}"
            f" AND {new} NOT IN ({exempt}) AND position(old{number} IN {new}) > 0",
            f"rows of {name} contain their former value",
        ),
    ]


def comparable(expression: str) -> str:
    """Return the SQL of a value as text, for comparisons and searches without regard to case."""
    # Of the column's own collation, equal texts may differ, which a search does not support.
    return f'(lower(({expression})::text) COLLATE "C")'


def refuse_rows(clauses: str, message: str) -> str:
    """Return the SQL that fails with a message and the number of rows if clauses select any."""
    return as_block(
        # No column has this name.
        f"SELECT count(*) INTO {SCHEMA} {clauses}; IF {SCHEMA} > 0 THEN"
        f" RAISE '% (%)', {literal(message)}, {SCHEMA}; END IF",
        f"DECLARE {SCHEMA} bigint",
    )


def touches(noted: Noted, key: Mapping[str, Any]) -> bool:
    """Return whether a column of a foreign key, or the one that it refers to, is replaced."""
    return any(
        rule["column"] in key[f"{side}_columns"]
        for side in ("from", "to")
        for rule in noted.replaced.get(key[f"{side}_table"], [])
    )


def orphans(key: Mapping[str, Any]) -> str:
    """Return the SQL that fails if rows violate a foreign key, which no trigger has checked."""
    pairs = list(zip(key["from_columns"], key["to_columns"], strict=True))
    given = " AND ".join(f"f.{column} IS NOT NULL" for column, _ in pairs)
    same = " AND ".join(f"t.{other} = f.{column}" for column, other in pairs)
    return refuse_rows(
        f"FROM {key['from']} f WHERE {given} AND NOT EXISTS (SELECT FROM {key['to']} t WHERE {same})",
        f"rows violate the foreign key {key['name']}, whose columns need values that match",
    )


def source(rule: Mapping[str, Any]) -> str:
    """Return a rule's table in SQL: with its partitions, and without tables that inherit from it."""
    return str(rule["table"]) if rule["partitioned"] else f"ONLY {rule['table']}"


def as_string(sql: str) -> str:
    """Return SQL as a string to execute, in which psql has no commands."""
    tag = f"$sql_{secrets.token_hex(8)}$"
    return as_block(f"EXECUTE {tag}{sql}{tag}")


def as_block(statements: str, declarations: str = "") -> str:
    """Return statements of PL/pgSQL as one of SQL."""
    tag = f"$do_{secrets.token_hex(8)}$"
    return f"DO {tag} {declarations and declarations + ';'} BEGIN {statements}; END {tag}"


def literal(text: str) -> str:
    """Return a text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def listed(words: Iterable[str]) -> str:
    """Return words as a list in a sentence."""
    return ", ".join(words)


def reason(said: str, *, lines: bool = False) -> str:
    """Return the sentence for an error of psql, without its details, which may contain rows.

    lines: its line numbers are those of the rules.
    """
    found = re.search(r"ERROR: +(.*?)(?: LINE (\d+):.*| (?:DETAIL|HINT|QUERY|CONTEXT): .*|$)", said)
    if not found:
        return said
    where = f" in line {found[2]}" if lines and found[2] else ""
    remedy = "correct the rules and run it again."
    if "unique constraint" in found[1] or "unique index" in found[1]:
        remedy = "let the expression contain the primary key, so that its values differ."
    return f"{found[1].rstrip('.')}{where}: {remedy}"


def forget(settings: Mapping[str, Any]) -> list[str]:
    """Remove the dumps and what an interrupted run has left; return what was removed."""
    copy = copy_of(settings, "anonymise", PORT)
    folder = Path(settings["state"]) / FOLDER
    removed = [path for path in (copy.data, folder, folder.with_name(f"{FOLDER}.new")) if path.exists()]
    copy.remove()
    for path in removed:
        shutil.rmtree(path, ignore_errors=True)
    return [str(path) for path in removed]
