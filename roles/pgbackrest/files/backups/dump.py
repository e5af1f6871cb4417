"""Dumps of the databases: a way to the data that does not depend on pgBackRest, proven by the drill."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import Cluster, Session, free_bytes, primary
from commands import ENVIRONMENT, account_words
from errors import BackupError
from manifest import Tables, compare_tables, read_tables, table_sizes

CIPHER = ("openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-pass", "env:PASSPHRASE")
RESTORED = "fastmetal_dump"
# It has the passphrase, which no other file repeats.
CONFIGURATION = Path("/etc/pgbackrest.conf")


def dump_all(settings: Mapping[str, Any], copy: Cluster) -> dict[str, Any]:
    """Dump each database, restore the dump into a copy, compare it, and return {database: what is known}.

    A dump replaces the former one once it is proven. Raise BackupError if one cannot be restored or differs.
    """
    folder = Path(settings["state"]) / "dumps"
    folder.mkdir(mode=0o700, exist_ok=True)
    server = primary(settings)
    names = [name for name in server.databases() if name not in ("postgres", "template1")]
    require_space(folder, server)
    found = {}
    for name in names:
        begun = time.monotonic()
        new = folder / f"{name}.new"
        try:
            tables = write(settings, server, name, new)
            restore(copy, new, name, tables)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        file = new.rename(folder / f"{name}.dump.enc")
        found[name] = {
            "bytes": file.stat().st_size,
            "tables": len(tables),
            "seconds": round(time.monotonic() - begun, 1),
        }
    for former in folder.glob("*.dump.enc"):
        if former.name.removesuffix(".dump.enc") not in names:
            former.unlink()
    return found


def require_space(folder: Path, server: Cluster) -> None:
    """Raise BackupError if a file system has no room for dumps beside the former ones."""
    needed = int(server.query("SELECT sum(pg_database_size(oid)) FROM pg_database WHERE datallowconn"))
    if free_bytes(folder) < needed:
        raise BackupError(
            f"Dumps need up to {needed >> 20} MiB in {folder}, and {free_bytes(folder) >> 20} MiB are free:"
            " make room, or set pgbackrest_dumps to false."
        )


def write(settings: Mapping[str, Any], server: Cluster, name: str, file: Path) -> Tables:
    """Write an encrypted dump of a database, and return what its tables hold in the same snapshot."""
    with Session(server, name) as session:
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        snapshot = session.run("SELECT pg_export_snapshot()")
        command = [*account_words(), "pg_dump", "--format=custom", f"--snapshot={snapshot}", name]
        with file.open("wb") as out:
            file.chmod(0o600)
            dump = subprocess.Popen(
                command, env=server.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
            )
            encrypt = subprocess.run(
                CIPHER, stdin=dump.stdout, stdout=out, env=with_passphrase(), check=False
            )
            said = dump.communicate()[1]
        if dump.returncode or encrypt.returncode:
            reason = " ".join(said.decode().split()) or "openssl failed"
            raise BackupError(f"{name} cannot be dumped: {reason}")
        most = int(settings["checksum_mb"]) << 20
        return contents(session, {table: size <= most for table, size in table_sizes(session).items()})


def with_passphrase() -> dict[str, str]:
    """Return the environment of CIPHER, with the passphrase of the first repository."""
    lines = CONFIGURATION.read_text().splitlines()
    passphrase = next(line for line in lines if line.startswith("repo1-cipher-pass="))
    return ENVIRONMENT | {"PASSPHRASE": passphrase.partition("=")[2]}


def contents(session: Session, tables: Mapping[str, bool]) -> Tables:
    """Return the rows of tables in a session's transaction, with a checksum of those that are true."""
    found = read_tables(session, {table: 100.0 for table, small in tables.items() if small})
    for table, small in tables.items():
        if not small:
            found[table] = (int(session.run(f"SELECT count(*) FROM {table}")), "", 0.0)  # noqa: S608
    return found


def restore(copy: Cluster, file: Path, name: str, tables: Tables) -> None:
    """Restore a dump into a database of a copy, compare every table, and remove the database."""
    copy.query(f"DROP DATABASE IF EXISTS {RESTORED}")
    copy.query(f"CREATE DATABASE {RESTORED} TEMPLATE template0")
    # Leaving the block closes the pipe: openssl ends with a pg_restore that has failed.
    with subprocess.Popen(
        [*CIPHER, "-d", "-in", str(file)], stdout=subprocess.PIPE, env=with_passphrase()
    ) as decrypt:
        restored = subprocess.run(
            [*account_words(), "pg_restore", f"--dbname={RESTORED}"],
            stdin=decrypt.stdout,
            env=copy.environment,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
    with Session(copy, RESTORED) as session:
        session.run("BEGIN")
        present = table_sizes(session)
        found = contents(session, {t: bool(entry[2]) for t, entry in tables.items() if t in present})
    copy.query(f"DROP DATABASE {RESTORED}")
    if wrong := compare_tables(name, tables, found):
        reason = " ".join(restored.stderr.split())[:300] or "pg_restore reports no error"
        raise BackupError(f"the restored dump differs: {'; '.join(wrong[:5])} ({reason})")
