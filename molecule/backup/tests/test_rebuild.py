"""A database host that is built anew beside a repository with backups."""

from __future__ import annotations

from tests.backups import Data

NEW = (
    "version=$(ls /etc/postgresql); pg_dropcluster --stop $version main;"
    " pg_createcluster $version main -- --data-checksums --encoding=UTF8 --locale=C.UTF-8"
)
SENTENCE = "The repository has backups of another cluster than this host's (stanza lab)."


def test_a_new_host_gets_the_data_of_the_lost_one(debian13: Data) -> None:
    debian13.sql("DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 42 AS value")
    debian13.wait_until_archived()
    debian13.ssh(NEW)
    # It neither mixes two clusters in one repository nor goes on without backups.
    assert debian13.play("postgres.yml", "--limit", "debian13").status == 0
    run = debian13.play("backup.yml")
    assert SENTENCE in run.output
    assert "playbooks/restore.yml -e target=latest" in run.output
    debian13.restore("latest")
    assert debian13.keep("fastmetal-backups create") == ""
    assert debian13.sql("SELECT value FROM kept") == "42"
    debian13.ssh("fastmetal-backups forget")


def test_a_repository_can_begin_anew(debian12: Data) -> None:
    before = debian12.list()
    debian12.ssh(NEW)
    assert SENTENCE in debian12.play("postgres.yml", "--limit", "debian12").output
    debian12.ssh("fastmetal-backups adopt")
    assert debian12.ssh("fastmetal-backups create") == ""
    # What was there stays until it expires.
    assert set(before) < set(debian12.list())
    debian12.wait_until_archived()
    assert debian12.backups("status")["faults"] == []
    assert debian12.backups("drill", f"--time={debian12.now()}")["result"] == "ok"
