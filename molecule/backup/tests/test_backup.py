"""What is backed up, and how."""

from __future__ import annotations

from tests.backups import Data


def test_a_new_environment_has_a_backup_and_an_archive(data: Data) -> None:
    (label, *_) = data.list()
    assert label.endswith("F")
    data.wait_until_archived()
    status = data.backups("status")
    assert status["faults"] == []
    assert status["behind_bytes"] == 0
    assert status["same_disk"] is True
    assert status["backups"].keys() == ({"1", "2"} if data.host == "debian12" else {"1"})
    timers = data.ssh("systemctl list-timers --all --no-legend 'fastmetal-*'")
    for timer in (
        "fastmetal-backup-full",
        "fastmetal-backup-diff",
        "fastmetal-restore-drill",
        "fastmetal-backups",
    ):
        assert f"{timer}.timer" in timers


def test_repositories_are_encrypted_and_readable_for_postgres_only(data: Data) -> None:
    data.sql("DROP TABLE IF EXISTS marked")
    data.sql("CREATE TABLE marked AS SELECT repeat('a mark that is easy to find ', 50) AS text")
    data.wait_until_archived()
    data.ssh("systemctl start fastmetal-backup@diff")
    # Without the passphrase nothing is legible: neither texts nor names of tables nor zstd's magic number.
    assert data.ssh("grep -rl 'a mark that\\|pg_class\\|marked' /var/lib/pgbackrest || true") == ""
    modes = data.ssh(
        "stat -c '%U %G %a' /etc/pgbackrest.conf /etc/fastmetal/backups.json /var/lib/pgbackrest"
    )
    assert modes.splitlines() == ["root postgres 640", "root postgres 640", "postgres postgres 750"]
    assert "cipher-pass" not in data.ssh("cat /etc/systemd/system/fastmetal-* /etc/fastmetal/backups.json")


def test_a_backup_has_a_manifest_of_every_table(data: Data) -> None:
    info = data.ssh("runuser -u postgres -- pgbackrest info --output=json")
    assert "marked" in info
    assert "position" in info


def test_backups_are_measured_each_minute(debian12: Data) -> None:
    before = debian12.ssh("cat /var/lib/fastmetal-backups/status.json")
    debian12.ssh("systemctl start fastmetal-backups")
    assert debian12.ssh("cat /var/lib/fastmetal-backups/status.json") != before


def test_status_shows_the_backups(debian12: Data) -> None:
    run = debian12.play("status.yml")
    assert run.status == 0, run.output
    assert "same disk" in run.output
