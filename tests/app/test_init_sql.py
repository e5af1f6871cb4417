"""The operator's initial SQL file: it runs once for a database, completely or not at all."""

import json
from pathlib import Path
from secrets import token_hex

import pytest

from tests.lab import ROOT, SERVICES, Lab, Run, play

SERVERS = Lab("pytest-service")
PSQL = "runuser -u postgres -- psql --no-psqlrc --quiet --tuples-only --no-align"
BROKEN = "CREATE TABLE colours (name text);\nINSERT INTO colours VALUES ('red');\nSELECT 1 / 0;"
# Neither its quotes nor its line breaks may matter, and it ends in a comment without a line break.
CORRECT = """\
CREATE EXTENSION pg_trgm;
CREATE TABLE colours (name text PRIMARY KEY);
INSERT INTO colours VALUES ('{{ red }}'), (E'it\\'s "blue"'), ($$\\if$$);
-- the end"""


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("migrated")
def test_initial_sql_runs_once(tmp_path: Path) -> None:
    file, name = tmp_path / "first.sql", f"init_{token_hex(4)}"
    databases = {name: {"owner": "api_owner", "app_role": "api", "init_sql": str(file)}}
    variables = json.dumps({"postgresql_databases": databases})

    def apply(sql: str) -> Run:
        file.write_text(sql)
        return play("-i", ROOT / "tests/inventory", "playbooks/postgres.yml", "-e", SERVICES, "-e", variables)

    def ask(sql: str) -> str:
        return SERVERS.ssh("data", f'{PSQL} --dbname={name} --command "{sql}"').strip()

    failed = apply(BROKEN)
    assert failed.status != 0
    assert f"{file} failed in the database {name}, and nothing of it was kept" in failed.sentences[-1]
    assert "division by zero" in failed.sentences[-1]
    assert ask("SELECT to_regclass('colours') IS NULL") == "t"

    first = apply(CORRECT)
    assert first.status == 0, first.output
    names = json.loads(ask("SELECT json_agg(name ORDER BY name) FROM colours"))
    assert set(names) == {"{{ red }}", 'it\'s "blue"', "\\if"}
    # It belongs to the owner, who migrates it, and the service may use it.
    assert ask("SELECT tableowner FROM pg_tables WHERE tablename = 'colours'") == "api_owner"
    assert ask("SELECT has_table_privilege('api', 'colours', 'INSERT')") == "t"

    changed = apply("CREATE TABLE later (id int);")
    assert changed.status == 0, changed.output
    assert changed.changed == {"data": 0}
    assert ask("SELECT to_regclass('later') IS NULL") == "t"
