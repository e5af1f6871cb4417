"""What is backed up, and how."""

from __future__ import annotations

from tests.backups import Data

TLS = "/etc/fastmetal/tls"


def test_a_new_environment_has_a_backup_and_an_archive(data: Data) -> None:
    (label, *_) = data.list()
    assert label.endswith("F")
    data.wait_until_archived()
    status = data.backups("status")
    assert status["faults"] == []
    assert status["behind_bytes"] == 0
    assert status["same_disk"] is (data.host == "debian12")
    assert status["backups"].keys() == ({"1", "2"} if data.host == "debian12" else {"1"})
    timers = data.keep("systemctl list-timers --all --no-legend 'fastmetal-*'")
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
    data.back_up()
    # Without the passphrase nothing is legible: neither texts nor names of tables nor zstd's magic number.
    # What is not archived yet has a directory of its own.
    plain = "grep -rl --exclude-dir=received 'a mark that\\|pg_class\\|marked' /var/lib/pgbackrest || true"
    assert data.keep(plain) == ""
    modes = data.keep(
        "stat -c '%U %G %a' /etc/pgbackrest.conf /etc/fastmetal/backups.json /var/lib/pgbackrest"
    )
    assert modes.splitlines() == ["root postgres 640", "root postgres 640", "postgres postgres 750"]
    assert "cipher-pass" not in data.keep("cat /etc/systemd/system/fastmetal-* /etc/fastmetal/backups.json")


def test_a_backup_has_a_manifest_of_every_table(data: Data) -> None:
    info = data.keep("runuser -u postgres -- pgbackrest info --output=json")
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


def test_a_database_host_reads_the_backups_but_cannot_delete_them(debian13: Data) -> None:
    """As one that an attacker controls: with its certificate and pgBackRest's own protocol."""
    before = debian13.keep("find /var/lib/pgbackrest/backup -type f | xargs sha256sum | sort")
    pgbackrest = "runuser -u postgres -- pgbackrest --stanza=lab"
    assert "backup.info" in debian13.ssh(f"{pgbackrest} repo-ls backup/lab")
    written = debian13.ssh(f"echo x | {pgbackrest} --repo=1 repo-put backup/lab/backup.info 2>&1 || true")
    assert "Read-only file system" in written
    # Its own idea of the retention is that nothing needs to stay.
    words = ("--repo1-retention-full=1", "--repo1-retention-full-type=count")
    expired = debian13.ssh(f"{pgbackrest} --repo=1 {' '.join(words)} expire 2>&1 || true")
    assert "unable to rem" in expired
    assert "Read-only file system" in expired
    deleted = debian13.ssh(
        f"{pgbackrest} stop; {pgbackrest} --repo=1 stanza-delete --force 2>&1 || true; {pgbackrest} start"
    )
    assert "ERROR" in deleted
    assert debian13.keep("find /var/lib/pgbackrest/backup -type f | xargs sha256sum | sort") == before
    debian13.wait_until_archived()


def test_pgbackrests_servers_admit_each_other_only(debian13: Data) -> None:
    """A certificate of another role, or one of a server, opens neither of them."""
    for place, option in (("debian13", "repo1"), ("store13", "pg1")):
        own = "restore" if place == "debian13" else "backup"
        for name, admitted in ((own, True), ("host", False), ("pgbackrest", False)):
            pair = " ".join(
                f"--{option}-host-{kind}-file={TLS}/{name}.{kind.replace('cert', 'crt')}"
                for kind in ("cert", "key")
            )
            command = "info" if place == "debian13" else "check --no-archive-check"
            said = debian13.lab.ssh(
                place, f"runuser -u postgres -- pgbackrest --stanza=lab {pair} {command} 2>&1 || true"
            )
            assert ("ERROR" not in said and "error" not in said) == admitted, (place, name, said)


def test_each_host_refuses_the_commands_of_the_other(debian13: Data) -> None:
    done = debian13.ssh("fastmetal-backups backup 2>&1 || true")
    assert done.strip() == "The backup host does this: run it on store13."
    done = debian13.keep("fastmetal-backups restore latest --confirm=lab 2>&1 || true")
    assert done.strip() == "This is the backup host: run it on debian13."
