"""`fastmetal-backups`: the backups of the Postgres on this host, restores and drills."""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anonymise
from backup import adopt, create, set_point, take_backup
from drill import run_drill
from errors import BackupError
from measure import measure, record
from receive import receive
from repository import Repository
from restore import Beside, Restore, describe, forget, reachable, require_new_cluster
from targets import FORMS, parse_target, parse_time, show_time

SETTINGS = Path("/etc/fastmetal/backups.json")


def main() -> int:
    """Run the command."""
    options = parser().parse_args()
    try:
        settings = json.loads(SETTINGS.read_text())
    except PermissionError:
        print("Run it as root: sudo fastmetal-backups …", file=sys.stderr)
        return 2
    try:
        require_host(settings, options)
        return int(COMMANDS[options.command](settings, options) or 0)
    except (BackupError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def require_host(settings: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Raise BackupError if a command belongs to the other one of a database host and its backup host."""
    command = options.command
    if settings["backup_host"] and command in ("adopt", "backup", "create", "drill", "receive"):
        raise BackupError(f"The backup host does this: run it on {settings['backup_host']}.")
    if settings["database"] and (command == "point" or (command == "restore" and not options.beside)):
        raise BackupError(f"This is the backup host: run it on {settings['database']['name']}.")
    if command == "receive" and not settings["database"]:
        raise BackupError("Only a backup host receives WAL: here Postgres archives it itself.")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the commands."""
    found = argparse.ArgumentParser(prog="fastmetal-backups", description=__doc__)
    commands = found.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the backups")
    commands.add_parser("measure", help="take a sample and write the metrics; a timer runs it")
    commands.add_parser("status", help="print what is known as JSON")
    commands.add_parser(
        "create", help="make the repositories ready and take the first backup; site.yml runs it"
    )
    commands.add_parser("adopt", help="let the repositories take another cluster than before")
    commands.add_parser("receive", help="receive the WAL of the database host; a unit runs it")
    backup = commands.add_parser("backup", help="take a backup; timers run it")
    backup.add_argument("--type", default="diff", choices=["full", "diff", "incr"])
    point = commands.add_parser("point", help="set a restore point and print its name")
    point.add_argument("label", help="what to call it; its time is added")
    planned = commands.add_parser("plan", help="show what a restore would do")
    planned.add_argument("target", help=FORMS)
    restore = commands.add_parser(
        "restore", help="replace the data of the cluster, or start a copy beside it"
    )
    restore.add_argument("target", help=FORMS)
    restore.add_argument(
        "--confirm", default="", help="the environment's name, as the cluster's data is replaced"
    )
    restore.add_argument("--beside", action="store_true", help="start a copy beside the cluster instead")
    restore.add_argument(
        "--anonymise",
        metavar="FILE",
        help="with --beside: dump the copy without personal data, by rules, and remove it",
    )
    restore.add_argument("--discard", action="store_true", help="do not keep the data that is replaced")
    restore.add_argument(
        "--onto-empty",
        action="store_true",
        help="refuse unless the cluster is new; for restore_site.yml",
    )
    commands.add_parser(
        "forget", help="remove copies beside the cluster, and the data and dumps that restores have kept"
    )
    drill = commands.add_parser("drill", help="prove that the backups restore; a timer runs it")
    drill.add_argument("--time", default="", help="the moment, instead of a random one")
    return found


def show_backups(settings: Mapping[str, Any], _: argparse.Namespace) -> None:
    """Print a line for each backup."""
    for backup in Repository(settings["stanza"]).backups:
        print(
            f"{backup.label}  {backup.kind}  {show_time(backup.stop)}  {backup.size >> 20} MiB"
            f"  timeline {backup.timeline}  repository {backup.repository}"
        )


def take(settings: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Take a backup."""
    with locked(settings):
        print(json.dumps(take_backup(settings, options.type)))
    record(settings)


def make(settings: Mapping[str, Any], _: argparse.Namespace) -> None:
    """Make the repositories ready."""
    with locked(settings):
        changed = create(settings)
    if changed:
        record(settings)
        print("created")


def take_over(settings: Mapping[str, Any], _: argparse.Namespace) -> None:
    """Let the repositories take another cluster."""
    with locked(settings):
        adopt(settings)


def point(settings: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Set a restore point."""
    print(set_point(settings, options.label))


def show_plan(settings: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Print what a restore would do."""
    found = reachable(settings, Repository(settings["stanza"]), parse_target(options.target))
    print(json.dumps(describe(settings, found)))


def restore(settings: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Restore."""
    target = parse_target(options.target)
    if options.anonymise is not None and not options.beside:
        raise BackupError("--anonymise changes a copy, not the cluster: give --beside, too.")
    rules = anonymise.read_rules(Path(options.anonymise)) if options.anonymise is not None else None
    with locked(settings):
        repository = Repository(settings["stanza"])
        if rules:
            print(json.dumps(anonymise.Anonymised(settings, repository, rules).run(target)))
            return
        if options.beside:
            print(json.dumps(Beside(settings, repository).run(target)))
            return
        if options.onto_empty:
            require_new_cluster(settings, repository)
        if options.confirm != settings["environment"]:
            raise BackupError(
                "This replaces the data of the cluster, and nothing has changed yet:"
                f" give --confirm={settings['environment']}."
            )
        print(json.dumps(Restore(settings, repository).run(target, keep=not options.discard)))
    record(settings)


def drill(settings: Mapping[str, Any], options: argparse.Namespace) -> int:
    """Run a drill."""
    with locked(settings):
        evidence = run_drill(settings, parse_time(options.time).timestamp() if options.time else None)
    record(settings)
    print(json.dumps(evidence))
    if evidence["result"] != "ok":
        print(f"The drill failed: {evidence['reason']}", file=sys.stderr)
    return int(evidence["result"] != "ok")


def stream(settings: Mapping[str, Any], _: argparse.Namespace) -> None:
    """Receive the WAL."""
    receive(settings)


def show_status(settings: Mapping[str, Any], _: argparse.Namespace) -> None:
    """Print what is known."""
    print(json.dumps(measure(settings)))


def sample(settings: Mapping[str, Any], _: argparse.Namespace) -> None:
    """Write what is known."""
    record(settings)


def remove_kept(settings: Mapping[str, Any], _: argparse.Namespace) -> None:
    """Remove what restores have left."""
    with locked(settings):
        for path in [*forget(settings), *anonymise.forget(settings)]:
            print(f"removed {path}")


COMMANDS = {
    "list": show_backups,
    "measure": sample,
    "status": show_status,
    "create": make,
    "adopt": take_over,
    "backup": take,
    "receive": stream,
    "point": point,
    "plan": show_plan,
    "restore": restore,
    "forget": remove_kept,
    "drill": drill,
}


@contextmanager
def locked(settings: Mapping[str, Any]) -> Iterator[None]:
    """Let one backup, restore or drill run at a time; a second one waits."""
    with (Path(settings["state"]) / "lock").open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
