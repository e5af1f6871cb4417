"""A copy for staging: every column has a rule, no former value is left, and the copy is removed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.migrations.run import plan
from tests.backups import Data
from tests.lab import ROOT

FOLDER = "/var/lib/fastmetal-backups/anonymised"
# What must not be in the dumps. Long texts are stored apart from their rows (TOAST).
ORIGINALS = [
    "Ada",
    "lovelace",
    "+44 20 7946",
    "Saint James",
    "10.20.30.40",
    "secret-of",
    "ARGON",
    "keyed",
    "USER MAPPING",
    "lo_create",
]
TABLES = """
CREATE SCHEMA staging;
CREATE DOMAIN staging.email AS text CHECK (VALUE LIKE '%@%');
CREATE TYPE staging.kind AS ENUM ('private', 'business');
CREATE TABLE staging.people (
  id int PRIMARY KEY, email staging.email UNIQUE, phones varchar(40)[], profile jsonb, address inet,
  code text UNIQUE DEFERRABLE, kind staging.kind, born date, note text,
  search tsvector GENERATED ALWAYS AS (to_tsvector('simple', coalesce(note, ''))) STORED);
CREATE INDEX ON staging.people (note);
CREATE TABLE staging.letters (
  sender text REFERENCES staging.people (email), "Body" bytea, sent date NOT NULL) PARTITION BY RANGE (sent);
CREATE TABLE staging.letters_2026 PARTITION OF staging.letters
  FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE staging.places (id int PRIMARY KEY);
CREATE TABLE staging.visits (place int REFERENCES staging.places);
CREATE FOREIGN DATA WRAPPER elsewhere;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER elsewhere;
CREATE USER MAPPING FOR PUBLIC SERVER elsewhere OPTIONS (password 'x');
CREATE TABLE staging.routes (via text) PARTITION BY LIST (via);
CREATE FOREIGN TABLE staging.routes_other PARTITION OF staging.routes DEFAULT SERVER elsewhere;
SELECT lo_from_bytea(0, 'x');
CREATE TABLE staging.sessions (token text, person int REFERENCES staging.people);
INSERT INTO staging.people
  SELECT n, 'Ada' || n || '@lovelace.example', ARRAY['+44 20 7946 ' || n],
    jsonb_build_object('street', 'Saint James'), '10.20.30.40', 'code-' || n, 'private', '1815-12-10',
    repeat('secret-of-' || n || ' ', 500)
  FROM generate_series(1, 300) n;
UPDATE staging.people SET note = NULL WHERE id = 7;
INSERT INTO staging.letters SELECT email, 'keyed', '2026-03-01' FROM staging.people;
INSERT INTO staging.sessions SELECT 'secret-of-session-' || id, id FROM staging.people;
CREATE FUNCTION staging.leak() RETURNS trigger LANGUAGE plpgsql AS $f$
  BEGIN INSERT INTO staging.sessions VALUES (OLD.email, OLD.id); RETURN NEW; END $f$;
CREATE TRIGGER leak BEFORE UPDATE ON staging.people FOR EACH ROW EXECUTE FUNCTION staging.leak();
ALTER TABLE staging.people ENABLE ALWAYS TRIGGER leak;
INSERT INTO users (name, password_hash, scopes) VALUES ('Ada', 'ARGON', '{products:write}');
INSERT INTO products (name, category, price, stock) VALUES ('Engine', 'difference', 1, 1);
INSERT INTO sign_in_networks (name, network) VALUES ('Ada', '10.20.30.0/24');
"""
RULES = """
SELECT anonymise('staging.people', 'email', $$ 'person' || id || '@example.com' $$);
SELECT anonymise('staging.people', 'phones', $$ ARRAY['+1 ' || id] $$);
SELECT anonymise('staging.people', 'profile', $$ '{}' $$);
SELECT anonymise('staging.people', 'address', $$ '::1' $$);
SELECT anonymise('staging.people', 'note', $$ md5(random()::text || id) -- of each row $$);
SELECT anonymise('staging.people', 'born', $$ date_trunc('year', born) $$);
SELECT keep('staging.people', 'code');
SELECT keep('staging.routes', 'via');
SELECT empty('staging.sessions');
SELECT anonymise('staging.letters', 'sender', $$ (SELECT 'person' || id || '@example.com' FROM staging.people
                                                  WHERE email = sender) $$);
SELECT anonymise('staging.letters', 'Body', $$ '' $$);
"""


@pytest.fixture(scope="module", autouse=True)
def _tables(debian13: Data) -> Iterator[None]:
    """Create the tables of the included service and others."""
    clean = (
        "DROP SCHEMA IF EXISTS staging CASCADE; DROP FOREIGN DATA WRAPPER IF EXISTS elsewhere CASCADE;"
        " SELECT lo_unlink(oid) FROM pg_largeobject_metadata; DROP TABLE IF EXISTS alembic_version,"
        " cache_epochs, idempotency_keys, products, sign_in_attempts, sign_in_networks, users"
    )
    debian13.sql(clean)
    others = debian13.sql(
        "SELECT string_agg(relname, ',') FROM pg_class WHERE relkind = 'r' AND relnamespace = 2200"
    )
    if others:
        # Of the tests before.
        debian13.sql(f"DROP TABLE {others}")
    execute(debian13, plan(None) + TABLES)
    yield
    debian13.sql(clean)
    debian13.ssh("fastmetal-backups forget; rm -f /root/rules.sql /root/attempt.py")


def execute(data: Data, script: str) -> None:
    """Run a script as the superuser."""
    encoded = base64.b64encode(script.encode()).decode()
    psql = "runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -d api"
    data.ssh(f"cd / && echo {encoded} | base64 -d | {psql}")


def assert_no_copy(data: Data) -> None:
    """Check that neither the copy nor dumps of a failed run are left."""
    left = data.ssh(
        "ls /var/lib/postgresql/*/ /run/postgresql /var/lib/fastmetal-backups; systemctl list-units"
    )
    assert "postgres-anonymise" not in left
    assert "anonymised.new" not in left
    assert "main.anonymise" not in left
    assert "fastmetal-anonymise" not in left


def test_the_dumps_have_no_former_value(debian13: Data, tmp_path: Path) -> None:
    rules = tmp_path / "rules.sql"
    rules.write_text((ROOT / "docs/anonymise.sql").read_text() + RULES)
    arguments = ("-e", f"host={debian13.host}", "-e", "target=latest", "-e", f"anonymise={rules}")
    run = debian13.play("restore.yml", *arguments, "-e", "beside=true")
    assert run.status == 0, run.output
    assert f"in {FOLDER}/api.dump." in run.output
    modes = debian13.ssh(f"stat -c '%U %a' {FOLDER} {FOLDER}/*").split("\n")
    assert modes[:3] == ["postgres 700", "postgres 600", ""]
    text = debian13.ssh(f"pg_restore -f - {FOLDER}/api.dump")
    assert [word for word in ORIGINALS if word in text] == []
    assert 'person300@example.com\t{"+1 300"}\t{}\t::1\tcode-300\tprivate\t1815-01-01' in text
    assert "Engine\tdifference" in text
    assert "{products:write}" in text
    # It restores, with its foreign keys, and the triggers as they were. NULL stays NULL.
    debian13.ssh(
        "cd / && runuser -u postgres -- createdb staging"
        f" && runuser -u postgres -- pg_restore --exit-on-error -d staging {FOLDER}/api.dump"
    )
    counts = (
        "SELECT count(email), count(note), count(search), (SELECT count(*) FROM staging.letters),"
        " (SELECT count(*) FROM staging.sessions), (SELECT tgenabled FROM pg_trigger WHERE tgname = 'leak')"
        " FROM staging.people"
    )
    assert debian13.sql(counts, "staging") == "300|299|300|300|0|A"
    debian13.sql("DROP DATABASE staging", "postgres")
    assert "anonymise('staging" not in debian13.ssh("journalctl -q --no-pager -o cat --since=-60s")
    # The copy is gone, and the cluster has its data.
    assert_no_copy(debian13)
    assert debian13.sql("SELECT count(*) FROM staging.people WHERE email LIKE 'Ada%'") == "300"
    assert FOLDER in debian13.ssh("fastmetal-backups forget")


def test_a_column_without_a_rule_is_refused(debian13: Data) -> None:
    encoded = base64.b64encode((ROOT / "docs/anonymise.sql").read_bytes()).decode()
    debian13.ssh(f"echo {encoded} | base64 -d > /root/rules.sql")
    assert debian13.refusal("restore", "latest", "--beside", "--anonymise=/root/rules.sql") == (
        "Nothing was delivered, and the copy is removed: the rules do not name api:"
        " staging.letters (Body, sender), staging.people (address, code, email, note, phones, profile),"
        " staging.routes (via),"
        " staging.sessions (token): add anonymise, keep or empty for each."
    )
    assert_no_copy(debian13)


def test_rules_need_a_copy_and_a_file(debian13: Data, tmp_path: Path) -> None:
    run = debian13.play(
        "restore.yml", "-e", "host=debian13", "-e", "target=latest", "-e", f"anonymise={tmp_path}/no"
    )
    assert run.sentences == [
        "-e anonymise= changes a copy, not the cluster: give -e beside=true, too."
        f" There is no file {tmp_path}/no: give the rules as -e anonymise=FILE."
    ]


# Without a copy: the rules are read, and the replacement rolls back when it fails.
ATTEMPT = """
import json, sys
sys.path.insert(0, "/usr/local/lib/fastmetal/backups")
import anonymise, cluster, errors
settings = json.load(open("/etc/fastmetal/backups.json"))
for text in json.load(sys.stdin):
    try:
        run = anonymise.Anonymised(settings, None, anonymise.Rules(text))
        run.copy = cluster.primary(settings)
        for database, noted in run._read().items():
            run._replace(database, noted)
        print("nothing")
    except errors.BackupError as error:
        print(error)
"""
EMAIL = "$$ 'person' || id || '@example.com' $$"
# {sentence: (a part of the rules, its replacement)}; the rules begin in line 3 of the file.
REFUSED = {
    'api: syntax error at or near "SELEC" in line 4: ': ("SELECT keep('alembic", "SELEC keep('alembic"),
    "api: users has no column nick: correct the rules": ("'users', 'scopes'", "'users', 'scopes', 'nick'"),
    "api: user is not a table of this database": ("empty('sign_in_attempts')", "empty('user')"),
    "api: public.users.scopes has two rules": ("'users', 'scopes'", "'users', 'scopes', 'scopes'"),
    "api: staging.people.search is generated": ("people', 'note'", "people', 'search'"),
    'public.users.name fails (column "idd" does not exist): correct': ("'user-' || id", "'user-' || idd"),
    "api: staging.routes has a partition on another server: correct": (
        "keep('staging.routes', 'via')",
        "empty('staging.routes')",
    ),
    "api: cannot execute UPDATE in a read-only transaction": (
        "SELECT keep('staging.people', 'code');",
        "SELECT keep('staging.people', 'code'); UPDATE users SET name = '';",
    ),
    "api: EXECUTE of transaction commands is not implemented": (
        "SELECT keep('staging.people', 'code');",
        "SELECT keep('staging.people', 'code'); COMMIT;",
    ),
    'api: syntax error at or near "\\" in line 4': ("SELECT keep('alembic", "\\! id\nSELECT keep('alembic"),
    "the rules name the database apj, and the copy has api": ("database: api", "database: apj"),
    "api: the rules empty staging.places, and staging.visits refers to it": (
        "SELECT keep('staging.people', 'code');",
        "SELECT keep('staging.people', 'code'); SELECT empty('staging.places');",
    ),
    'duplicate key value violates unique constraint "people_email_key": let the expression contain': (
        EMAIL,
        "$$ 'one@example.com' $$",
    ),
    'could not create unique index "people_code_key": let the': (
        "keep('staging.people', 'code')",
        "anonymise('staging.people', 'code', $$ 'x' $$)",
    ),
    "api: rows violate the foreign key letters_sender_fkey, whose columns need values that match (300): ": (
        EMAIL,
        "$$ id || '@x' $$",
    ),
    'value for domain staging.email violates check constraint "email_check": correct': (
        EMAIL,
        "$$ 'person' || id $$",
    ),
    "api: values of staging.people.email are former values of the column (1): ": (
        EMAIL,
        "$$ CASE WHEN id = 9 THEN upper(email) ELSE id || '@x' END $$",
    ),
    "api: rows of staging.people.email contain their former value (300): ": (EMAIL, "$$ 'x-' || email $$"),
    "api: values of staging.people.code are former values of the column (300): ": (
        "keep('staging.people', 'code')",
        "anonymise('staging.people', 'code', $$ 'Code-' || (301 - id) $$)",
    ),
}


def test_rules_that_do_not_fit_are_refused(debian13: Data) -> None:
    rules = (ROOT / "docs/anonymise.sql").read_text() + RULES
    changed = []
    for part, instead in REFUSED.values():
        assert rules.count(part) == 1, part
        changed.append(rules.replace(part, instead))
    script, cases = (base64.b64encode(text.encode()).decode() for text in (ATTEMPT, json.dumps(changed)))
    command = (
        f"echo {script} | base64 -d > /root/attempt.py; echo {cases} | base64 -d | python3 /root/attempt.py"
    )
    answers = debian13.ssh(command).splitlines()
    for sentence, answer in zip(REFUSED, answers, strict=True):
        assert sentence in answer
        assert answer.endswith(".")
    assert debian13.sql("SELECT count(*) FROM staging.people WHERE email LIKE 'Ada%'") == "300"
