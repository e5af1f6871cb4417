"""Drills: what they prove, and that they fail when a backup cannot be trusted."""

from __future__ import annotations

import json

from tests.backups import Data

TABLE = "accounts"


def test_a_drill_compares_every_table_and_checks_every_index(data: Data) -> None:
    data.sql(f"DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} (id int PRIMARY KEY, name text)")
    data.sql(f"CREATE INDEX ON {TABLE} (name)")
    data.sql(f"INSERT INTO {TABLE} SELECT n, md5(n::text) FROM generate_series(1, 5000) n")
    data.back_up()
    since = data.now()
    evidence = data.backups("drill", f"--time={since}")
    assert evidence["result"] == "ok"
    assert evidence["rows"] >= 5000
    assert evidence["indexes"] > 100
    assert evidence["queries"] == 1
    kept = json.loads(data.keep("cat $(ls /var/lib/fastmetal-backups/drills/*.json | tail -1)"))
    assert kept == evidence
    data.measured.append(f"{data.host}: a drill took {evidence['seconds']} s")
    # The dump is readable without pgBackRest.
    assert evidence["dumps"]["api"]["tables"] >= 1
    dump = "/var/lib/fastmetal-backups/dumps/api.dump.enc"
    command = f"openssl enc -d -aes-256-cbc -pbkdf2 -pass env:P -in {dump}"
    passphrase = "$(sed -n s/^repo1-cipher-pass=//p /etc/pgbackrest.conf)"
    listed = data.keep(f'P="{passphrase}" {command} | pg_restore --file=-')
    assert f"COPY public.{TABLE} (id, name) FROM stdin" in listed
    assert "\n4711\t" in listed
    # Nothing else of it stays.
    assert "drill" not in data.keep("ls /var/lib/postgresql/*/ /run/postgresql")


def test_the_timers_unit_runs_a_drill_at_a_random_second(data: Data) -> None:
    data.keep("systemctl start fastmetal-restore-drill")
    assert data.backups("status")["drill"]["result"] == "ok"


def test_a_drill_notices_rows_that_differ(debian13: Data) -> None:
    """As if the backup had lost a row: the manifest of the primary says what must be there."""
    newest = debian13.list()[-1]
    pgbackrest = "runuser -u postgres -- pgbackrest --stanza=lab"
    info = json.loads(debian13.keep(f"{pgbackrest} info --output=json"))
    manifest = json.loads(info[0]["backup"][-1]["annotation"]["fastmetal"])
    manifest["tables"]["api"][f"public.{TABLE}"][0] += 1
    changed = json.dumps(manifest, separators=(",", ":"))
    debian13.keep(f"{pgbackrest} --repo=1 --set={newest} '--annotation=fastmetal={changed}' annotate")
    reason = debian13.refusal("drill", f"--time={debian13.now()}")
    assert "the restored tables differ from the manifest" in reason
    assert f"api: public.{TABLE} has 5000 rows instead of 5001" in reason
    assert debian13.backups("status")["drill"]["result"] == "failed"
    manifest["tables"]["api"][f"public.{TABLE}"][0] -= 1
    debian13.keep(
        f"{pgbackrest} --repo=1 --set={newest} '--annotation=fastmetal={json.dumps(manifest)}' annotate"
    )


def test_a_drill_notices_a_damaged_index(debian13: Data) -> None:
    """A row that an index lacks is what `pgbackrest verify` cannot see."""
    change = (
        "SET allow_system_table_mods = on;"
        " UPDATE pg_index SET {} WHERE indexrelid = 'accounts_name_idx'::regclass"
    )
    debian13.sql(change.format("indisready = false, indisvalid = false"))
    debian13.sql(f"INSERT INTO {TABLE} VALUES (0, 'not in the index')")
    debian13.sql(change.format("indisready = true, indisvalid = true"))
    reason = debian13.refusal("drill", f"--time={debian13.now()}")
    assert "an index of api is damaged" in reason
    assert "accounts_name_idx" in reason
    debian13.sql("REINDEX INDEX accounts_name_idx")
    debian13.back_up()
    assert debian13.backups("drill", f"--time={debian13.now()}")["result"] == "ok"


def test_a_drill_notices_a_damaged_repository(debian13: Data) -> None:
    debian13.back_up("full")
    newest = debian13.list()[-1]
    damage = (
        "import pathlib, sys;"
        " file = max(pathlib.Path(sys.argv[1]).rglob('bundle/*'), key=lambda f: f.stat().st_size);"
        " data = bytearray(file.read_bytes()); data[len(data) // 2] ^= 1; file.write_bytes(data)"
    )
    folder = f"/var/lib/pgbackrest/backup/lab/{newest}"
    debian13.keep(f"cp -a {folder} /root/whole")
    debian13.keep(f'runuser -u postgres -- python3 -c "{damage}" {folder}')
    reason = debian13.refusal("drill", f"--time={debian13.now()}")
    debian13.keep(f"rm -r {folder} && mv /root/whole {folder}")
    assert f"The drill failed: Backup {newest} in repository 1 cannot be restored: " in reason
    assert debian13.backups("drill", f"--time={debian13.now()}")["result"] == "ok"


def test_a_drill_notices_a_dump_that_does_not_restore(debian13: Data) -> None:
    """A function that finds its table by the search path works in the server and not in pg_restore."""
    debian13.sql(
        f"CREATE FUNCTION known(int) RETURNS bool LANGUAGE sql AS 'SELECT $1 IN (SELECT id FROM {TABLE})';"
        " CREATE TABLE checked (id int CHECK (known(id))); INSERT INTO checked VALUES (7)"
    )
    reason = debian13.refusal("drill", f"--time={debian13.now()}")
    debian13.sql("DROP TABLE checked; DROP FUNCTION known")
    assert "the restored dump differs: api: public.checked has 0 rows instead of 1" in reason
    assert f'relation "{TABLE}" does not exist' in reason


def test_a_drill_asks_the_operators_queries(debian13: Data) -> None:
    with debian13.changed("/etc/fastmetal/backups.json", "s/count(.) > 0/count(*) < 0/"):
        reason = debian13.refusal("drill", f"--time={debian13.now()}")
    assert 'The drill failed: in api, "SELECT count(*) < 0 FROM pg_class" returned f, not true' in reason
