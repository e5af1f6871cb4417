"""Restores: to a moment, a restore point and a backup, also of an abandoned timeline, and after a loss."""

from __future__ import annotations

import re
import time

import pytest

from tests.backups import DATABASE, Data, utc

ROWS = 20_000
CONFIGURATION = "/etc/pgbackrest.conf"


@pytest.fixture(scope="module", autouse=True)
def _ledger(debian12: Data, debian13: Data) -> None:
    for host in (debian12, debian13):
        host.sql("DROP TABLE IF EXISTS ledger, ticks")
        host.sql(f"CREATE TABLE ledger AS SELECT n, md5(n::text) AS entry FROM generate_series(1, {ROWS}) n")
        host.ssh("systemctl start fastmetal-backups")


def test_a_wrong_delete_is_undone(data: Data) -> None:
    before = data.now()
    data.sql("DELETE FROM ledger WHERE n % 3 = 0; INSERT INTO ledger VALUES (0, 'later')")
    timeline = int(data.sql("SELECT timeline_id FROM pg_control_checkpoint()"))
    plan = data.backups("plan", f"time={before}")
    assert plan["lost_rows"] == pytest.approx(ROWS // 3 + 1, rel=0.2)
    assert 0 < plan["lost_seconds"] < 60
    output = data.restore(f"time={before}")
    assert data.sql("SELECT count(*), count(*) FILTER (WHERE entry = 'later') FROM ledger") == f"{ROWS}|0"
    (down,) = re.findall(r"after ([\d.]+) s without answers", output)
    data.measured.append(f"{data.host}: a restore to a moment took {down} s without answers")
    # The former data stays, the archive goes on, and there is a new backup of the new timeline.
    (kept,) = re.findall(r"The former data is in (\S+)", output)
    assert "PG_VERSION" in data.ssh(f"ls {kept}")
    data.wait_until_archived()
    assert int(data.sql("SELECT timeline_id FROM pg_control_checkpoint()")) > timeline
    assert f"timeline {timeline + 1}" in data.keep("fastmetal-backups list | tail -1")
    assert data.ssh("fastmetal-backups forget").strip() == f"removed {kept}"


def test_restore_points_and_older_timelines(debian12: Data) -> None:
    """A second and a third restore: to a point, then to what an earlier restore has undone."""
    point = debian12.ssh("fastmetal-backups point before-import").strip()
    debian12.sql("UPDATE ledger SET entry = 'imported'")
    undone = debian12.now()
    debian12.restore(f"restore_point={point}")
    assert debian12.sql("SELECT count(*) FROM ledger WHERE entry = 'imported'") == "0"
    # The import is on a timeline that is no longer the server's.
    debian12.restore(f"time={undone}")
    assert debian12.sql("SELECT count(*) FROM ledger WHERE entry = 'imported'") == str(ROWS)
    newest = debian12.list()[-1]
    debian12.sql("TRUNCATE ledger")
    debian12.restore(f"backup={newest}")
    assert debian12.sql("SELECT count(*) FROM ledger") == str(ROWS)
    debian12.ssh("fastmetal-backups forget")


def test_a_copy_beside_the_cluster_is_for_looking(debian13: Data) -> None:
    before = debian13.now()
    debian13.sql("DELETE FROM ledger")
    run = debian13.play(
        "restore.yml", "-e", f"host={debian13.host}", "-e", f"target='time={before}'", "-e", "beside=true"
    )
    assert run.status == 0, run.output
    (command,) = re.findall(r"sudo -u postgres (psql -h \S+ -p \d+)", run.output)
    count = "SELECT count(*) FROM ledger"
    assert debian13.ssh(f"runuser -u postgres -- {command} -XqAt -d api -c '{count}'").strip() == str(ROWS)
    assert debian13.sql(count) == "0"
    # It archives nothing: the archive belongs to the cluster.
    assert (
        debian13.ssh(f"runuser -u postgres -- {command} -XqAt -d api -c 'SHOW archive_mode'").strip() == "off"
    )
    debian13.ssh("fastmetal-backups forget")
    assert "beside" not in debian13.ssh("ls /var/lib/postgresql/*/ /run/postgresql")


def test_a_lost_disk_loses_less_than_five_seconds(debian13: Data) -> None:
    """200 rows are written each second until the data is destroyed; what was streamed comes back."""
    debian13.sql("DROP TABLE IF EXISTS ticks; CREATE TABLE ticks (at timestamptz)")
    debian13.ssh("echo 'INSERT INTO ticks VALUES (clock_timestamp())' > /tmp/ticks.sql")
    pgbench = "/usr/lib/postgresql/17/bin/pgbench --no-vacuum --rate=200 --time=60 --client=4"
    debian13.ssh(f"systemd-run --quiet --uid=postgres {pgbench} --file=/tmp/ticks.sql {DATABASE}")
    time.sleep(5)
    lost_at = float(
        debian13.ssh(
            "date +%s.%N; systemctl kill --signal=KILL 'postgresql@*-main'; systemctl stop postgresql;"
            " rm -rf /var/lib/postgresql/*/main"
        )
    )
    debian13.restore("latest")
    rows, last = debian13.sql("SELECT count(*), extract(epoch FROM max(at)) FROM ticks").split("|")
    assert int(rows) > 600
    lost = max(lost_at - float(last), 0)
    debian13.measured.append(f"{debian13.host}: a lost disk cost {lost:.2f} s of 200 writes a second")
    assert lost < 5


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("newest", '"newest" is no target: give latest, time='),
        ("time=noon", '"noon" is no time: write 2026-05-04T13:45:00'),
        ("time=2020-01-01", "2020-01-01 00:00:00 UTC is before the oldest backup, which ended at"),
        ("time=2100-01-01", "2100-01-01 00:00:00 UTC is in the future: it is"),
        ("backup=20200101-000000F", "There is no backup 20200101-000000F; the newest are"),
        ("restore_point=mine", "mine is no restore point of `fastmetal-backups point`"),
    ],
)
def test_bad_targets_are_refused_before_anything_changes(debian12: Data, target: str, sentence: str) -> None:
    before = debian12.sql("SELECT pg_postmaster_start_time()")
    assert sentence in debian12.refusal("restore", target, "--confirm=lab")
    assert debian12.sql("SELECT pg_postmaster_start_time()") == before


def test_a_restore_point_that_does_not_exist_changes_nothing(debian13: Data) -> None:
    before = debian13.sql("SELECT pg_postmaster_start_time()")
    name = time.strftime("nothing@%Y%m%dT%H%M%SZ", time.gmtime(utc(debian13.now())))
    assert "has no restore point nothing@" in debian13.refusal(
        "restore", f"restore_point={name}", "--confirm=lab"
    )
    assert debian13.sql("SELECT pg_postmaster_start_time()") == before
    assert "restored" not in debian13.ssh("ls /var/lib/postgresql/*/")


def test_a_restore_asks_for_the_environments_name(debian12: Data) -> None:
    assert "nothing has changed yet: give --confirm=lab." in debian12.refusal("restore", "latest")
    run = debian12.play("restore.yml", "-e", "host=debian12", "-e", "target=latest", "-e", "confirm=other")
    assert run.sentences == [
        "Nothing was changed: the answer is not lab. Without a terminal, give -e confirm=lab."
    ]
    run = debian12.play("restore.yml")
    assert "Give -e target=latest, time=" in run.sentences[0]
    assert "choose one with -e host=, debian12 or debian13." in run.sentences[0]


def test_a_wrong_passphrase_is_refused(debian12: Data) -> None:
    with debian12.changed(CONFIGURATION, "s/-cipher-pass=/&x/"):
        sentence = debian12.refusal("plan", f"time={debian12.now()}")
    assert "it cannot be decrypted: is pgbackrest_passphrase the one of its first backup?" in sentence


def test_a_full_disk_is_refused(debian12: Data) -> None:
    """The directory of the data is a small file system for a moment."""
    debian12.wait_until_archived(90)
    debian12.ssh("mkdir -p /tiny && mount -t tmpfs -o size=8M tiny /tiny")
    with debian12.changed("/etc/fastmetal/backups.json", "s|/var/lib/postgresql/15/main|/tiny/main|"):
        sentence = debian12.refusal("restore", f"time={debian12.now()}", "--confirm=lab")
    debian12.ssh("umount /tiny && rmdir /tiny")
    assert "A restore needs" in sentence
    assert "8 MiB are free" in sentence


def test_a_lost_repository_is_replaced_by_the_other(debian12: Data) -> None:
    debian12.wait_until_archived()
    before = debian12.now()
    debian12.sql("DELETE FROM ledger")
    debian12.wait_until_archived()
    with debian12.without_repository():
        assert "repository 1: " in debian12.backups("status")["faults"][0]
        assert debian12.backups("drill", f"--time={before}")["repository"] == 2
        copy = debian12.backups("restore", f"time={before}", "--beside")
        psql = copy["connect"].replace("sudo -u", "runuser -u").replace("psql", "-- psql", 1)
        count = "SELECT count(*) FROM ledger"
        assert debian12.ssh(f"{psql} -XqAt -d api -c '{count}'").strip() == str(ROWS)
    debian12.ssh("fastmetal-backups forget")


def test_the_archive_catches_up_when_the_repository_is_back(debian13: Data) -> None:
    with debian13.without_repository():
        debian13.sql("INSERT INTO ledger VALUES (-1, 'meanwhile'); SELECT pg_switch_wal()")
        debian13.sql("INSERT INTO ledger VALUES (-2, 'meanwhile'); SELECT pg_switch_wal()")
        debian13.keep("systemctl start fastmetal-backups")
        status = debian13.backups("status")
        assert status["faults"]
    debian13.wait_until_archived(90)
    debian13.keep("systemctl start fastmetal-backups")
    status = debian13.backups("status")
    assert (status["faults"], status["behind_bytes"]) == ([], 0)


GAP = r"WAL after .* is missing in the repository .*: restore to a time before, or to one after"


def test_wal_is_bounded_and_the_gap_is_refused(debian12: Data) -> None:
    """Above the bound the oldest segments are dropped, so that the disk of Postgres does not fill."""
    since = debian12.now()
    debian12.sql("INSERT INTO ledger VALUES (8, 'before the gap')")
    debian12.wait_until_archived(90)
    bounded = debian12.changed(CONFIGURATION, "s/^archive-push-queue-max=.*/archive-push-queue-max=64MiB/")
    with bounded, debian12.without_repository(), debian12.without_repository("/srv/pgbackrest"):
        for number in range(8):
            debian12.sql(f"INSERT INTO ledger VALUES ({number}, 'dropped'); SELECT pg_switch_wal()")
        waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
        deadline = time.monotonic() + 90
        while int(debian12.sql(waiting)) > 4:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    debian12.sql("INSERT INTO ledger VALUES (9, 'after the gap')")
    debian12.wait_until_archived(90)
    assert re.search(GAP, debian12.refusal("plan", f"time={debian12.now()}"))
    assert debian12.backups("plan", f"time={since}")["lost_seconds"] > 0
    # A new backup ends it.
    debian12.back_up("full")
    assert debian12.backups("plan", f"time={debian12.now()}")["lost_seconds"] >= 0


def test_a_backup_host_that_was_away_too_long_begins_anew(debian13: Data) -> None:
    """The server keeps WAL for it up to a bound; the gap is refused until the next backup."""
    debian13.keep("systemctl stop fastmetal-receive-wal")
    debian13.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'")
    debian13.sql("SELECT pg_reload_conf()")
    for number in range(6):
        debian13.sql(f"INSERT INTO ledger VALUES ({number}, 'not received'); SELECT pg_switch_wal()")
    debian13.sql("CHECKPOINT")
    assert debian13.sql("SELECT wal_status FROM pg_replication_slots") == "lost"
    debian13.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
    debian13.sql("SELECT pg_reload_conf()")
    debian13.keep("systemctl start fastmetal-receive-wal")
    debian13.wait_until_archived(90)
    assert re.search(GAP, debian13.refusal("plan", f"time={debian13.now()}"))
    debian13.back_up()
    assert debian13.backups("plan", f"time={debian13.now()}")["lost_seconds"] >= 0
