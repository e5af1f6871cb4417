"""SERVICE-release: manage the releases of the service on this host.

An instance is a release with a frozen copy of its configuration, `<release>.<number>`, and a systemd unit
of its own. `switch` starts a new instance beside the old one on the same socket. Once the new instance is
ready it takes the traffic, and the old one finishes its in-flight requests and stops. The link `current`
names the promoted instance, which a boot starts. A canary instance (linked in /run, so a boot forgets it)
serves too, but rolls back to `current` unless it is promoted in time.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from files import write_atomically
from service import ReleaseError, Service, answer, release_of, succeeds
from workers import Workers

# A token for the checks is reused for this long: a rollback often follows a deploy and must not wait for one.
TOKEN_SECONDS = 600


class Changes(Workers):
    """The changes from one release to another."""

    def switch(
        self, release: str, metadata: dict[str, Any], *, promote_within: int = 0, force: bool = False
    ) -> dict[str, Any]:
        """Replace the live instance by one of a release; as a canary if it has to be promoted."""
        began = time.monotonic()
        old = self.live
        if release_of(old) == release and not force and self.is_up_to_date(old):
            started = self.start_workers(old)
            return {"changed": self.ensure_enabled() or started, "instance": old, "release": release}
        if self.canary:
            raise ReleaseError(f"{self.canary} is a canary: promote it or roll it back.")
        (self.srv / "releases" / release / "failed.json").unlink(missing_ok=True)
        instance = ""
        try:
            instance = self.prepare(release)
            self.start(instance)
            ready = time.monotonic()
            if promote_within:
                self.schedule_rollback(promote_within, metadata)
                write_atomically(self.run / "canary.json", json.dumps(metadata) + "\n")
                self.replace_link(self.run / "canary", instance)
            else:
                # Before the old ones are asked to stop, so that tasks never wait for a job.
                self.start_workers(instance)
                self.replace_link(self.srv / "current", instance)
        except (ReleaseError, OSError) as error:
            self.cancel_rollback()
            self.stop_workers(instance)
            self.discard(instance)
            if isinstance(error, ReleaseError) and release != release_of(old):
                self.mark_failed(release, str(error).partition("\n")[0])
            if not promote_within:
                self.record(metadata, release=release, previous=release_of(old), result="failed")
            raise
        # The old instance accepts no connection from here on; discard() waits for its in-flight requests.
        self.retire(old)
        self.ensure_enabled()
        result = {
            "changed": True,
            "instance": instance,
            "release": release,
            "previous": release_of(old),
            "start_seconds": round(ready - began, 2),
        }
        if not promote_within:
            self.prune_instances()
            result["stop_seconds"] = round(time.monotonic() - ready, 2)
            seconds = round(time.monotonic() - began, 2)
            self.record(metadata, release=release, previous=release_of(old), seconds=seconds, result="ok")
        return result

    def migrate(self, release: str, options: dict[str, Any]) -> dict[str, Any]:
        """Migrate the database to a release's schema, or leave it as it was."""
        # Only a deploy needs it.
        from migration import Migration

        try:
            return Migration(self, release, options).run()
        except ReleaseError as error:
            # A release that serves works with the database as it is.
            if release != release_of(self.live):
                self.mark_failed(release, str(error))
            raise

    def ensure_enabled(self) -> bool:
        """Enable and start the service's umbrella unit; return whether that was necessary."""
        umbrella = f"{self.name}.service"
        properties = "--property=NeedDaemonReload,UnitFileState,ActiveState"
        state = answer("systemctl", "show", properties, umbrella).splitlines()
        if "NeedDaemonReload=yes" in state:
            answer("systemctl", "daemon-reload")
        if {"UnitFileState=enabled", "ActiveState=active"} <= set(state):
            return False
        answer("systemctl", "enable", "--now", umbrella)
        return True

    def schedule_rollback(self, seconds: int, metadata: dict[str, Any]) -> None:
        """Roll back after this time unless the canary is promoted: the control node may be gone."""
        self.cancel_rollback()
        answer(
            *("systemd-run", "--quiet", f"--unit={self.name}-rollback", f"--on-active={seconds}"),
            *("--timer-property=AccuracySec=1s", f"/usr/local/sbin/{self.name}-release", "rollback"),
            *("--metadata", json.dumps(metadata), "--reason", f"not promoted within {seconds} s"),
        )

    def cancel_rollback(self) -> None:
        """Stop the timer of a scheduled rollback."""
        succeeds("systemctl", "stop", f"{self.name}-rollback.timer")

    def promote(self, release: str, metadata: dict[str, Any], keep: int) -> dict[str, Any]:
        """Make the canary the instance that a boot starts."""
        if release_of(self.current) == release and not self.canary:
            return {"changed": False}
        if release_of(self.canary) != release:
            raise ReleaseError(f"{release} is no canary on this host: the host has rolled back already")
        old, new = self.current, self.canary
        self.start_workers(new)
        self.cancel_rollback()
        self.replace_link(self.srv / "current", new)
        self.clear_canary()
        self.record(metadata, release=release, previous=release_of(old), result="ok")
        # Only the next change on this host waits for the old instance's last answer. If the removal fails,
        # its unit stays behind as failed, and status.yml and an alert report it.
        answer(
            *("systemd-run", "--quiet", f"--description={self.name}: remove old instances and releases"),
            *(f"/usr/local/sbin/{self.name}-release", "prune", f"--keep={keep}"),
        )
        return {"changed": True}

    def roll_back(self, metadata: dict[str, Any], reason: str) -> dict[str, Any]:
        """Return to the release that was live before a run's change, promoted or not."""
        run_id, canary, current = metadata.get("run", ""), self.canary, self.current
        if canary and run_id and run_id != self.canary_run() and not self.holds_lock(run_id):
            # The canary belongs to another run, which goes on; the lock refused this one.
            return {"changed": False}
        if not canary:
            entries = [entry for entry in self.history() if run_id and entry.get("run") == run_id]
            if not entries or entries[-1]["result"] != "ok" or release_of(current) != entries[-1]["release"]:
                return self.record_failure(metadata, reason)
            release, previous = str(entries[-1]["release"]), str(entries[-1]["previous"])
            self.switch(previous, {**metadata, "action": "rollback"})
        else:
            release = release_of(canary)
            self.cancel_rollback()
            if current:
                self.start(current)
            self.clear_canary()
            self.stop_workers(canary)
            self.discard(canary)
        if release != release_of(self.current):
            self.mark_failed(release, reason)
        more = {"release": release, "previous": release_of(self.current), "reason": reason}
        self.record(metadata, **more, result="rolled_back")
        return {"changed": True, "release": release_of(self.current)}

    def record_failure(self, metadata: dict[str, Any], reason: str) -> dict[str, Any]:
        """Record a run that failed before it changed this host, if it held the host's lock."""
        release = str(metadata.get("release", ""))
        if self.holds_lock(metadata.get("run", "")):
            if release and release != release_of(self.current) and metadata["action"] == "deploy":
                self.mark_failed(release, reason)
            previous = release_of(self.current)
            self.record({**metadata, "release": release}, previous=previous, result="failed", reason=reason)
        return {"changed": False}

    def clear_canary(self) -> None:
        """Forget the canary; its instance stays."""
        for name in ("canary", "canary.json"):
            (self.run / name).unlink(missing_ok=True)

    def canary_run(self) -> str:
        """Return the id of the run that the canary belongs to; empty if it was switched by hand."""
        path = self.run / "canary.json"
        return str(json.loads(path.read_text()).get("run", "")) if path.exists() else ""

    def start_token(self, release: str, arguments: str) -> subprocess.Popen[str] | None:
        """Start to make a token for the checks unless a fresh one exists: it takes a whole app's start."""
        kept = self.run / "check-token"
        # A key is replaced by a file of its name, which changes the directory.
        oldest = max(time.time() - TOKEN_SECONDS, (self.etc / "credentials").stat().st_mtime)
        if not arguments or (kept.exists() and kept.stat().st_mtime > oldest):
            return None
        command = (f"/usr/local/sbin/{self.name}-manage", "--release", release, *arguments.split())
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def check(self, release: str, wanted: dict[str, Any], token: subprocess.Popen[str] | None) -> None:
        """Check the release on this host's own socket: an edge may ask a host that has not switched yet."""
        kept = self.run / "check-token"
        if token:
            out, errors = token.communicate()
            if token.returncode:
                raise ReleaseError(f"The token for the release's check could not be made: {errors.strip()}")
            write_atomically(kept, out.strip(), 0o600)
        bearer = kept.read_text() if wanted["token_arguments"] else ""
        # HTTP and TLS take longer to load than the other commands take.
        import check

        if wrong := check.fault(str(self.run / f"{self.name}.sock"), "", release, bearer, wanted):
            raise ReleaseError(f"The release's check failed: {wrong}.")

    def prune_releases(self, keep: int) -> None:
        """Remove all but the newest releases; never the live one, the one before, or one that pages use."""
        links = [self.srv / name for name in ("previous", "next")]
        served = [link.resolve().name for link in links if link.exists()]
        needed = [release_of(self.live), self.previous(), *served]
        homes = sorted((self.srv / "releases").iterdir(), key=lambda home: home.stat().st_mtime, reverse=True)
        others = [home for home in homes if home.name not in needed]
        for home in others[max(0, keep - len(set(filter(None, needed)))) :]:
            shutil.rmtree(home)
        used = {self.own_python(home.name) for home in (self.srv / "releases").iterdir()}
        for python in (self.srv / "pythons").glob("*"):
            # A run that goes on may have installed it for a release that is not there yet.
            if python not in used and python.stat().st_mtime < time.time() - 3600:
                shutil.rmtree(python)


@contextlib.contextmanager
def exclusive(service: Service) -> Iterator[None]:
    """Allow one change at a time on this host: a run's, or the host's own rollback."""
    service.srv.mkdir(exist_ok=True)
    with (service.srv / ".change").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="print what is live, as JSON")
    commands.add_parser("history", help="print every change, one JSON object per line")
    commands.add_parser("boot", help="start the live instance")
    announce = commands.add_parser("announce-shutdown", help="turn readiness off before the instance stops")
    announce.add_argument("instance")
    announce.add_argument("seconds", type=float)
    stop = commands.add_parser("stop-workers", help="stop an old instance's jobs once they have finished")
    stop.add_argument("instance")
    for name, text in {
        "switch": "replace the live release by another one",
        "promote": "make the canary the release that a boot starts",
        "prune": "remove instances and releases that are no longer needed",
        "rollback": "return to the release that was live before",
        "migrate": "migrate the database to a release's schema",
        "lock": "reserve this host for a run",
        "unlock": "release the lock of a run",
    }.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--metadata", type=json.loads, default={}, help="who changes what, as JSON")
        if name in ("switch", "promote", "migrate"):
            command.add_argument("release")
        if name == "switch":
            command.add_argument("--promote-within", type=int, default=0, metavar="SECONDS")
            command.add_argument("--force", action="store_true", help="also if nothing has changed")
            command.add_argument(
                "--check", action="store_true", help="send the requests of the JSON on stdin"
            )
        if name == "migrate":
            command.add_argument("--migrate", required=True, help="the command that migrates")
            command.add_argument("--plan", default="", help="the command that prints pending SQL")
            command.add_argument("--back", default="", help="the command that undoes, before a revision")
            command.add_argument("--revisions", type=json.loads, default={}, help="attributes, as JSON")
            command.add_argument("--wait", type=float, default=60, metavar="SECONDS", help="for a lock")
        if name in ("promote", "prune"):
            command.add_argument("--keep", type=int, default=5, metavar="RELEASES")
        if name == "rollback":
            command.add_argument("--reason", default="requested")
        if name == "lock":
            command.add_argument("--seconds", type=int, default=1800)
            command.add_argument("--break", action="store_true", dest="break_lock")
    return parser.parse_args()


def run_command(service: Changes, options: argparse.Namespace) -> dict[str, Any]:
    """Run one command and return its result."""
    origin = {"action": options.command, "by": "root", "from": os.uname().nodename}
    metadata = {**origin, **getattr(options, "metadata", {})}
    if options.command == "status":
        return service.status()
    if options.command == "boot":
        answer("systemctl", "start", service.unit(service.live))
        return {}
    if options.command == "announce-shutdown":
        service.announce_shutdown(options.instance, options.seconds)
        return {}
    if options.command == "stop-workers":
        service.stop_workers(options.instance)
        return {}
    result: dict[str, Any] = {}
    with exclusive(service):
        if options.command == "switch":
            release, within = options.release, options.promote_within
            # Its requests may have passwords, which a command line would show.
            check = json.load(sys.stdin) if options.check else None
            token = service.start_token(release, check["token_arguments"]) if check else None
            result = service.switch(release, metadata, promote_within=within, force=options.force)
            if check:
                service.check(release, check, token)
            return result
        if options.command == "prune":
            service.prune_instances()
            service.prune_releases(options.keep)
            return result
        if options.command == "migrate":
            return service.migrate(options.release, vars(options))
        if options.command == "lock":
            return service.take_lock(metadata, options.seconds, break_lock=options.break_lock)
        if options.command == "promote":
            result = service.promote(options.release, metadata, options.keep)
        try:
            if options.command == "rollback":
                result = service.roll_back(metadata, options.reason)
        finally:
            # A full disk takes no record, but the lock must not keep the next run out.
            service.drop_lock(metadata.get("run", ""))
        return result


def main() -> int:
    """Run the command that argv names."""
    service = Changes(Path(sys.argv[0]).name.removesuffix("-release"))
    options = parse()
    if options.command == "history":
        sys.stdout.write(service.history_file.read_text() if service.history_file.exists() else "")
        return 0
    try:
        sys.stdout.write(json.dumps(run_command(service, options)) + "\n")
    except (ReleaseError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
