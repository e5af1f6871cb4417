"""PostgreSQL for its clients: authentication, network access, privileges and settings."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from testinfra.backend.base import CommandResult
from testinfra.host import Host

pytestmark = pytest.mark.on("postgres")

SOCKET = "/run/postgresql"
PROBE = "fastmetal_probe"
# Opens connections until Postgres refuses one, and connects as others while they are open.
FILL = """
import os, psycopg2, subprocess
kept = []
try:
    while True:
        kept.append(psycopg2.connect(os.environ["TARGET"]))
except psycopg2.OperationalError as error:
    refusal = error
print(len(kept))
owner = psycopg2.connect(os.environ["OWNER"]).cursor()
owner.execute("SELECT 1")
print(owner.fetchone()[0], flush=True)
subprocess.run(os.environ["SUPERUSER"], shell=True, check=True)
print(refusal)
"""
# Connects without a word, and prints how long Postgres waits for it.
SILENT = """
import os, socket, time
link = socket.socket(socket.AF_UNIX)
link.settimeout(20)
link.connect(os.environ["SOCKET"])
begun = time.monotonic()
assert link.recv(1) == b""
print(time.monotonic() - begun)
"""


@dataclass
class Server:
    """The server on one host, with clients for it."""

    host: Host
    variables: dict[str, Any]

    def __post_init__(self) -> None:
        self.port: int = self.variables["postgresql_port"]
        self.addresses: list[str] = self.variables["postgresql_listen_addresses"]
        self.passwords = {role["name"]: role["password"] for role in self.variables["__postgresql_roles"]}
        database = self.variables["__postgresql_databases"][0]
        self.database, self.owner, self.app = database["name"], database["owner"], database["app_role"]

    def query(
        self,
        role: str,
        sql: str,
        password: str | None = None,
        address: str = SOCKET,
        options: str = "",
        database: str = "",
    ) -> CommandResult:
        """Run SQL as a role with its password."""
        target = f"host={address} port={self.port} user={role} dbname={database or self.database} {options}"
        return self.host.run(
            "PGPASSWORD=%s psql --no-psqlrc --quiet --tuples-only --no-align --command=%s %s",
            self.passwords[role] if password is None else password,
            sql,
            target,
        )

    def admin(self, sql: str) -> str:
        """Run SQL as the superuser, by peer authentication, and return its output."""
        psql = "runuser -u postgres -- psql --no-psqlrc --quiet --tuples-only --no-align"
        command = f"{psql} --port=%s --command=%s %s"
        return str(self.host.check_output(command, str(self.port), sql, self.database)).strip()

    def settings(self) -> dict[str, int]:
        """Return the effective numeric settings; sizes are in bytes."""
        value = "CASE WHEN unit LIKE '%B' THEN pg_size_bytes(current_setting(name)) ELSE setting::bigint END"
        table = "pg_settings WHERE vartype = 'integer' AND setting::bigint > 0"
        found: dict[str, int] = json.loads(self.admin(f"SELECT json_object_agg(name, {value}) FROM {table}"))
        return found


@pytest.fixture
def server(host: Host, variables: dict[str, Any]) -> Server:
    return Server(host, variables)


@pytest.fixture
def listening(server: Server) -> str:
    """Return the server's first network address."""
    return server.addresses[0]


@pytest.fixture
def table(server: Server) -> Iterator[str]:
    """Return the name of a table that the owner created, as a migration would."""
    created = server.query(server.owner, f"CREATE TABLE {PROBE} (id serial PRIMARY KEY, name text)")
    assert created.succeeded, created.stderr
    yield PROBE
    assert server.query(server.owner, f"DROP TABLE {PROBE}").succeeded


def test_every_role_connects_with_its_password_to_its_databases(server: Server) -> None:
    databases = server.variables["__postgresql_databases"]
    for role in server.passwords:
        reads_all = role == server.variables["postgresql_backup_role"]
        own = {one["name"] for one in databases if reads_all or role in {one["owner"], one.get("app_role")}}
        for database in (one["name"] for one in databases):
            answer = server.query(role, "SELECT current_user", database=database)
            expected = (role, "") if database in own else ("", "permission denied for database")
            assert (answer.stdout.strip(), expected[1] in answer.stderr) == (expected[0], True), answer.stderr
        for database in ("postgres", "template1"):
            answer = server.query(role, "SELECT 1", database=database)
            assert ("permission denied for database" in answer.stderr) != reads_all


def test_a_wrong_password_is_refused(server: Server) -> None:
    for role in server.passwords:
        answer = server.query(role, "SELECT 1", password="wrong")
        assert answer.failed
        assert "password authentication failed" in answer.stderr


def test_only_its_own_system_user_connects_as_superuser(server: Server) -> None:
    answer = server.host.run(
        "psql --no-psqlrc --no-password --command='SELECT 1' %s",
        f"host={SOCKET} port={server.port} user=postgres",
    )
    assert answer.failed
    assert "Peer authentication failed" in answer.stderr


@pytest.mark.parametrize(
    "definition", ["TABLE intruder (id int)", "SCHEMA intruder", "ROLE intruder", "DATABASE x"]
)
def test_the_app_role_cannot_create_objects(server: Server, definition: str) -> None:
    answer = server.query(server.app, f"CREATE {definition}")
    assert answer.failed
    assert "permission denied" in answer.stderr


def test_the_app_role_changes_rows_but_not_tables(server: Server, table: str) -> None:
    rows = server.query(
        server.app,
        f"INSERT INTO {table} (name) VALUES ('a'), ('b'); UPDATE {table} SET name = 'c' WHERE name = 'a';"
        f"DELETE FROM {table} WHERE name = 'b'; SELECT name FROM {table}",
    )
    assert rows.stdout.split() == ["c"], rows.stderr
    for statement in (f"DROP TABLE {table}", f"TRUNCATE {table}", f"ALTER TABLE {table} ADD extra int"):
        answer = server.query(server.app, statement)
        assert answer.failed, statement
        assert "permission denied" in answer.stderr or "must be owner" in answer.stderr


def test_the_app_role_uses_what_a_migration_creates_in_any_schema(server: Server) -> None:
    """And keeps what a migration has revoked."""
    names = f"CREATE SCHEMA {PROBE}; CREATE TABLE {PROBE}.rows (id serial PRIMARY KEY, name text);"
    names += f"CREATE VIEW {PROBE}.names AS SELECT name FROM {PROBE}.rows"
    assert server.query(server.owner, names).succeeded
    try:
        rows = server.query(
            server.app,
            f"INSERT INTO {PROBE}.rows (name) VALUES ('a'); CREATE TEMPORARY TABLE mine AS"
            f" SELECT * FROM {PROBE}.names; SELECT name FROM mine",
        )
        assert rows.stdout.split() == ["a"], rows.stderr
        assert server.query(server.owner, f"REVOKE SELECT ON {PROBE}.rows FROM {server.app}").succeeded
        answer = server.query(server.app, f"SELECT 1 FROM {PROBE}.rows")
        assert "permission denied for table rows" in answer.stderr
    finally:
        assert server.query(server.owner, f"DROP SCHEMA {PROBE} CASCADE").succeeded


@pytest.mark.on("complete")
def test_roles_that_serve_and_roles_that_migrate_have_their_timeouts(server: Server) -> None:
    for role, kind in ((server.app, "app"), (server.owner, "migration")):
        for setting, value in server.variables[f"postgresql_{kind}_role_settings"].items():
            assert server.query(role, f"SHOW {setting}").stdout.strip() == str(value)
    ended = server.query(server.app, "SET statement_timeout = 50; SELECT pg_sleep(5)")
    assert "canceling statement due to statement timeout" in ended.stderr


@pytest.mark.on("complete")
def test_a_session_that_unsets_its_timeouts_is_ended(server: Server) -> None:
    """PostgreSQL lets every role change its timeouts; the ones of the role are enforced from outside."""
    kept = server.variables["postgresql_app_role_settings"]
    names = ("statement_timeout", "idle_in_transaction_session_timeout")
    changed = "".join(f"ALTER ROLE {server.app} SET {name} = '1s';" for name in names)
    server.admin(changed)
    try:
        unset = "".join(f"SET {name} = 0;" for name in names)
        busy = server.query(server.app, f"{unset} SELECT pg_sleep(60)")
        assert "terminating connection" in busy.stderr
        idle = server.host.run(
            f"(echo '{unset} BEGIN; SELECT 1;'; sleep 14; echo 'SELECT 2;') | PGPASSWORD=%s psql --quiet %s",
            server.passwords[server.app],
            f"host={SOCKET} port={server.port} user={server.app} dbname={server.database}",
        )
        assert "terminating connection" in idle.stderr
    finally:
        server.admin("".join(f"ALTER ROLE {server.app} SET {name} = '{kept[name]}';" for name in names))
    refused = server.query(server.app, "SET temp_file_limit = -1")
    assert "permission denied to set parameter" in refused.stderr
    assert server.query(server.app, "SHOW temp_file_limit").stdout.strip() == "1GB"


@pytest.mark.on("complete")
def test_the_service_leaves_connections_for_operators(server: Server) -> None:
    """Open as many as the role gets; its owner and the superuser still have some."""
    target = f"host={SOCKET} port={server.port} dbname={server.database} user=%s password=%s"
    superuser = f"runuser -u postgres -- psql -At --port={server.port} --command='SELECT 2'"
    answer = server.host.check_output(
        "TARGET=%s OWNER=%s SUPERUSER=%s python3 -c %s",
        target % (server.app, server.passwords[server.app]),
        target % (server.owner, server.passwords[server.owner]),
        superuser,
        FILL,
    )
    opened, owner, as_superuser, refusal = answer.split("\n", 3)
    roles = {role["name"]: role for role in server.variables["__postgresql_roles"]}
    limit = roles[server.app]["connection_limit"]
    assert 10 < int(opened) <= limit <= server.variables["postgresql_max_connections"] - 13
    assert (owner, as_superuser) == ("1", "2")
    assert f'too many connections for role "{server.app}"' in refusal


@pytest.mark.on("complete")
def test_a_connection_authenticates_within_ten_seconds(server: Server) -> None:
    assert server.admin("SHOW authentication_timeout") == "10s"
    socket = f"{SOCKET}/.s.PGSQL.{server.port}"
    assert float(server.host.check_output("SOCKET=%s python3 -c %s", socket, SILENT)) < 12


def test_passwords_are_stored_only_as_scram_verifiers(server: Server) -> None:
    names = ", ".join(f"'{role}'" for role in server.passwords)
    verifiers = server.admin(f"SELECT rolpassword FROM pg_authid WHERE rolname IN ({names})").splitlines()
    assert len(verifiers) == len(server.passwords)
    assert all(verifier.startswith("SCRAM-SHA-256$") for verifier in verifiers)
    assert server.admin("SELECT count(*) FROM pg_stat_statements WHERE query ~* 'password '''") == "0"
    for password in server.passwords.values():
        assert server.host.run("grep -rqF -e %s /var/log/postgresql /etc/postgresql", password).rc == 1


@pytest.mark.on("complete")
def test_statements_are_counted(server: Server) -> None:
    server.admin("SELECT pg_stat_statements_reset()")
    for number in (1, 2, 3):
        assert server.query(server.app, f"SELECT {number} AS {PROBE}").succeeded
    counted = f"SELECT sum(calls) FROM pg_stat_statements WHERE query LIKE 'SELECT $1 AS {PROBE}'"
    assert server.admin(counted) == "3"


@pytest.mark.on("complete")
def test_slow_statements_are_logged_and_fast_ones_are_not(server: Server) -> None:
    limit = server.variables["postgresql_slow_query_ms"]
    assert limit <= 2000
    tag = server.admin("SELECT md5(random()::text)")
    assert server.query(server.app, f"SELECT pg_sleep({limit / 1000 + 0.1}) AS slow_{tag}").succeeded
    assert server.query(server.app, f"SELECT 1 AS fast_{tag}").succeeded
    logged = server.host.check_output("grep -rhF -e %s /var/log/postgresql", tag)
    assert f"slow_{tag}" in logged
    assert "duration:" in logged
    assert limit == 0 or f"fast_{tag}" not in logged


def test_settings_follow_the_documented_formulas(server: Server) -> None:
    assert not server.variables["postgresql_settings"]
    mib = 1024 * 1024
    memory = int(server.host.check_output("awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo"))
    cores = int(server.host.check_output("grep -c ^processor /proc/cpuinfo"))
    connections = server.variables["postgresql_max_connections"]
    memory -= memory % 2 ** (memory.bit_length() - 5)
    budget = memory * server.variables["postgresql_memory_percent"] // 100
    buffers = min(budget // 4, 16384)
    expected = {
        "shared_buffers": buffers * mib,
        "effective_cache_size": budget * 3 // 4 * mib,
        "work_mem": min(max((budget - buffers) // (2 * connections), 4), 64) * mib,
        "maintenance_work_mem": min(max(budget // 16, 64), 1024) * mib,
        "max_wal_size": min(max(budget, 1024), 8192) * mib,
        "max_connections": connections,
        "client_connection_check_interval": 250,  # milliseconds
        "max_worker_processes": max(8, cores * 2),
        "max_parallel_workers": cores,
        "max_parallel_workers_per_gather": min(cores // 2, 4),
    }
    found = server.settings()
    assert {name: found.get(name, 0) for name in expected} == expected
    assert server.admin("SELECT count(*) FROM pg_settings WHERE pending_restart") == "0"


@pytest.mark.on("complete")
def test_data_checksums_are_on(server: Server) -> None:
    assert server.admin("SHOW data_checksums") == "on"


@pytest.mark.on("complete")
def test_the_encoding_is_utf_8(server: Server) -> None:
    assert server.query(server.app, "SELECT chr(8364)").stdout.strip() == "€"


def test_it_listens_on_the_configured_addresses_only(server: Server) -> None:
    listeners = server.host.check_output("ss --no-header --listening --numeric --tcp --processes")
    ours = [line.split()[3] for line in listeners.splitlines() if '"postgres"' in line]
    found = {address.rpartition(":")[0].strip("[]") for address in ours}
    assert found == set(server.addresses)


@pytest.mark.on("postgres_tls")
def test_plaintext_is_refused(server: Server, listening: str) -> None:
    answer = server.query(server.app, "SELECT 1", address=listening, options="sslmode=disable")
    assert answer.failed
    assert "no encryption" in answer.stderr


@pytest.mark.on("postgres_tls")
def test_a_listed_address_connects_with_verify_full(server: Server, listening: str) -> None:
    ca = server.variables["postgresql_tls_ca_certificate"]
    options = f"sslmode=verify-full sslrootcert={ca}"
    sql = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    answer = server.query(server.app, sql, address=listening, options=options)
    if f"{listening}/32" in server.variables["postgresql_client_addresses"]:
        assert answer.stdout.strip() == "TLSv1.3", answer.stderr
    else:
        assert answer.failed
        assert "no pg_hba.conf entry" in answer.stderr
        assert "SSL encryption" in answer.stderr


@pytest.mark.on("postgres_tls")
def test_another_ca_does_not_verify_the_server(server: Server, listening: str) -> None:
    options = "sslmode=verify-full sslrootcert=/etc/ssl/certs/ca-certificates.crt"
    answer = server.query(server.app, "SELECT 1", address=listening, options=options)
    assert answer.failed
    assert "certificate verify failed" in answer.stderr


@pytest.mark.on("postgres_tls")
def test_the_superuser_cannot_connect_over_the_network(server: Server, listening: str) -> None:
    answer = server.query(
        "postgres", "SELECT 1", password="any", address=listening, options="sslmode=require"
    )
    assert answer.failed
    assert "no pg_hba.conf entry" in answer.stderr
