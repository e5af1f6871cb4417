"""A database host that is built anew beside a repository with backups."""

from __future__ import annotations

import time

import pytest

from tests.backups import Data

NEW = (
    "version=$(ls /etc/postgresql); pg_dropcluster --stop $version main;"
    " pg_createcluster $version main -- --data-checksums --encoding=UTF8 --locale=C.UTF-8"
)
SENTENCE = "The repository has backups of another cluster than this host's (stanza lab)."


@pytest.mark.timeout(400)  # It runs site.yml.
def test_a_site_comes_back_from_its_backups(debian13: Data) -> None:
    """The database host is new; its backup host and the inventory are what is left."""
    debian13.sql("DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 42 AS value")
    debian13.ssh(NEW)
    begun = time.monotonic()
    run = debian13.play("restore_site.yml", "-e", "confirm=lab", "--limit", "debian13,store13")
    assert run.status == 0, run.output
    debian13.measured.append(f"restore_site.yml took {time.monotonic() - begun:.0f} s for two hosts")
    # The last segment was not complete: it came from what the backup host was receiving.
    assert debian13.sql("SELECT value FROM kept") == "42"
    assert debian13.keep("fastmetal-backups create") == ""
    debian13.wait_until_archived()
    sentence = debian13.refusal("restore", "latest", "--onto-empty", "--confirm=lab")
    assert sentence.startswith("The data of this host is what the repository has backups of")
    run = debian13.play("restore_site.yml", "-e", "confirm=other")
    assert "Nothing was changed: the answer is not lab." in run.output


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
