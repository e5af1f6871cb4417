"""SERVICE-release: which release of the service this host runs, and the change from one to another.

An instance is a release with a frozen copy of its configuration, `<release>.<number>`, and a systemd unit
of its own. A change starts the new instance beside the old one on the same socket; it takes traffic once it
has proven itself ready, then the old one drains and stops. `current` names the instance that a boot starts.
An instance on trial (in /run, so a boot forgets it) serves too, but returns to `current` by itself unless it
is confirmed in time.
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

from lint import faults, revisions
from service import ReleaseError, Service, answer, release_of, succeeds, write

# A token for the checks is used for this long: a rollback often follows a deploy and must not wait for one.
TOKEN_SECONDS = 600


class Changes(Service):
    """The ways from one release to another."""

    def switch(
        self, release: str, about: dict[str, Any], *, confirm_within: int = 0, renew: bool = False
    ) -> dict[str, Any]:
        """Put an instance of a release in the live one's place; on trial if it must be confirmed."""
        began = time.monotonic()
        old = self.live
        if release_of(old) == release and not renew and self.is_up_to_date(old):
            return {"changed": self.settle(), "instance": old, "release": release}
        if self.trial:
            raise ReleaseError(f"{self.trial} is on trial: confirm it or return from it.")
        (self.srv / "releases" / release / "failed.json").unlink(missing_ok=True)
        instance = ""
        try:
            instance = self.prepare(release)
            self.start(instance)
            ready = time.monotonic()
            if confirm_within:
                self.arm(confirm_within, about)
                write(self.run / "trial.json", json.dumps(about) + "\n")
                self.point(self.run / "trial", instance)
            else:
                self.point(self.srv / "current", instance)
        except (ReleaseError, OSError) as error:
            self.disarm()
            self.discard(instance)
            if isinstance(error, ReleaseError) and release != release_of(old):
                self.mark_failed(release, str(error).partition("\n")[0])
            if not confirm_within:
                self.record(about, release=release, previous=release_of(old), result="failed")
            raise
        # It takes no new connection from here on; who needs it gone waits for its last answer in discard().
        self.retire(old)
        self.settle()
        result = {
            "changed": True,
            "instance": instance,
            "release": release,
            "previous": release_of(old),
            "start_seconds": round(ready - began, 2),
        }
        if not confirm_within:
            self.sweep()
            result["drain_seconds"] = round(time.monotonic() - ready, 2)
            self.renew_jobs()
            seconds = round(time.monotonic() - began, 2)
            self.record(about, release=release, previous=release_of(old), seconds=seconds, result="ok")
        return result

    def migrate(self, release: str, commands: dict[str, str]) -> dict[str, Any]:
        """Bring the database to what a release needs, or leave it as it was."""
        try:
            return self.try_to_migrate(release, commands)
        except ReleaseError as error:
            self.mark_failed(release, str(error))
            raise

    def try_to_migrate(self, release: str, commands: dict[str, str]) -> dict[str, Any]:
        manage = (f"/usr/local/sbin/{self.name}-manage", "--release", release)
        steps: list[tuple[str, str]] = []
        if commands.get("plan"):
            plan = answer(*manage, *commands["plan"].split())
            steps = revisions(plan)
            if not steps:
                return {"changed": False}
            if wrong := faults(plan):
                raise ReleaseError(". ".join(wrong))
            write(self.srv / "releases" / release / "migration.sql", plan + "\n", 0o600)
        try:
            answer(*manage, *commands["migrate"].split())
        except ReleaseError as error:
            if not steps or not commands.get("back"):
                raise
            start = steps[0][1] or "base"
            try:
                answer(*manage, *commands["back"].split(), start)
            except ReleaseError as second:
                raise ReleaseError(f"{error}. Going back to {start} failed too: {second}") from None
            (self.srv / "releases" / release / "migration.sql").unlink()
            raise ReleaseError(f"{error}. The database is at revision {start}, as before") from None
        return {"changed": True, "revisions": [after for after, _ in steps]}

    def settle(self) -> bool:
        """See that the boot starts the service, with its units as they are now."""
        umbrella = f"{self.name}.service"
        properties = "--property=NeedDaemonReload,UnitFileState,ActiveState"
        state = answer("systemctl", "show", properties, umbrella).splitlines()
        if "NeedDaemonReload=yes" in state:
            answer("systemctl", "daemon-reload")
        if {"UnitFileState=enabled", "ActiveState=active"} <= set(state):
            return False
        answer("systemctl", "enable", "--now", umbrella)
        return True

    def renew_jobs(self) -> None:
        """Restart the jobs that run all the time, which are the current release's too."""
        succeeds("systemctl", "try-restart", f"{self.name}-workers.target")

    def arm(self, seconds: int, about: dict[str, Any]) -> None:
        """Return by itself unless somebody confirms: the control host may be gone."""
        self.disarm()
        answer(
            *("systemd-run", "--quiet", f"--unit={self.name}-return", f"--on-active={seconds}"),
            *("--timer-property=AccuracySec=1s", f"/usr/local/sbin/{self.name}-release", "return"),
            *("--about", json.dumps(about), "--reason", f"nobody confirmed it within {seconds} s"),
        )

    def disarm(self) -> None:
        succeeds("systemctl", "stop", f"{self.name}-return.timer")

    def confirm(self, release: str, about: dict[str, Any], keep: int) -> dict[str, Any]:
        """Make the instance on trial the one that a boot starts."""
        if release_of(self.current) == release and not self.trial:
            return {"changed": False}
        if release_of(self.trial) != release:
            raise ReleaseError(f"{release} is not on trial here: the host has returned from it already")
        old, new = self.current, self.trial
        self.disarm()
        self.point(self.srv / "current", new)
        self.end_trial()
        self.record(about, release=release, previous=release_of(old), result="ok")
        self.renew_jobs()
        # Nobody has to wait for the old instance's last answer; the next change on this host does.
        # Should it fail, its unit stays behind as failed, for status.yml and the alert to tell of.
        answer(
            *("systemd-run", "--quiet", f"--description={self.name}: remove what is old"),
            *(f"/usr/local/sbin/{self.name}-release", "sweep", f"--keep={keep}"),
        )
        return {"changed": True}

    def back(self, about: dict[str, Any], reason: str) -> dict[str, Any]:
        """Go back to what was live before a run's change, whether that was confirmed already or not."""
        run_id, trial, current = about.get("run", ""), self.trial, self.current
        if trial and run_id and run_id != self.trial_run() and not self.holds_lock(run_id):
            # Another run's, which goes on: this one was refused.
            return {"changed": False}
        if not trial:
            entries = [entry for entry in self.history() if run_id and entry.get("run") == run_id]
            if not entries or entries[-1]["result"] != "ok" or release_of(current) != entries[-1]["release"]:
                return self.miss(about, reason)
            release, previous = str(entries[-1]["release"]), str(entries[-1]["previous"])
            self.switch(previous, {**about, "action": "return"})
        else:
            release = release_of(trial)
            self.disarm()
            if current:
                self.start(current)
            self.end_trial()
            self.discard(trial)
        if release != release_of(self.current):
            self.mark_failed(release, reason)
        more = {"release": release, "previous": release_of(self.current), "reason": reason}
        self.record(about, **more, result="returned")
        return {"changed": True, "release": release_of(self.current)}

    def miss(self, about: dict[str, Any], reason: str) -> dict[str, Any]:
        """Record a run that failed before it changed this host, if the host was ever the run's own."""
        release = str(about.get("release", ""))
        if self.holds_lock(about.get("run", "")):
            if release and release != release_of(self.current) and about["action"] == "deploy":
                self.mark_failed(release, reason)
            previous = release_of(self.current)
            self.record({**about, "release": release}, previous=previous, result="failed", reason=reason)
        return {"changed": False}

    def end_trial(self) -> None:
        for name in ("trial", "trial.json"):
            (self.run / name).unlink(missing_ok=True)

    def trial_run(self) -> str:
        """Return the run whose release is on trial; a trial by hand is nobody's."""
        path = self.run / "trial.json"
        return str(json.loads(path.read_text()).get("run", "")) if path.exists() else ""

    def mint(self, release: str, arguments: str) -> subprocess.Popen[str] | None:
        """Begin to make a token for the checks where there is no fresh one: it loads the whole service."""
        kept = self.run / "check-token"
        # A key is replaced by a file of its name, which changes the directory.
        oldest = max(time.time() - TOKEN_SECONDS, (self.etc / "credentials").stat().st_mtime)
        if not arguments or (kept.exists() and kept.stat().st_mtime > oldest):
            return None
        command = (f"/usr/local/sbin/{self.name}-manage", "--release", release, *arguments.split())
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def check(self, release: str, wanted: dict[str, Any], minting: subprocess.Popen[str] | None) -> None:
        """Ask the host itself, as an edge may ask one that has not switched yet."""
        kept = self.run / "check-token"
        if minting:
            said, words = minting.communicate()
            if minting.returncode:
                raise ReleaseError(f"The token for the release's check could not be made: {words.strip()}")
            write(kept, said.strip(), 0o600)
        token = kept.read_text() if wanted["token_arguments"] else ""
        # HTTP and TLS take longer to load than the other commands take.
        import check

        if wrong := check.fault(str(self.run / f"{self.name}.sock"), "", release, token, wanted):
            raise ReleaseError(f"The release's check failed: {wrong}.")

    def prune(self, keep: int) -> None:
        """Remove all but the last releases; never the live one or the one before it."""
        needed = [release_of(self.live), self.previous()]
        homes = sorted((self.srv / "releases").iterdir(), key=lambda home: home.stat().st_mtime, reverse=True)
        others = [home for home in homes if home.name not in needed]
        for home in others[max(0, keep - len(set(filter(None, needed)))) :]:
            shutil.rmtree(home)


@contextlib.contextmanager
def alone(service: Service) -> Iterator[None]:
    """One change at a time on this host: a run's, or the host's own return."""
    service.srv.mkdir(exist_ok=True)
    with (service.srv / ".change").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="what is live, as JSON")
    commands.add_parser("history", help="every change, a JSON object a line")
    commands.add_parser("boot", help="start what is current")
    leave = commands.add_parser("leave", help="before an instance stops, tell that it is not ready")
    leave.add_argument("instance")
    leave.add_argument("seconds", type=float)
    for name, text in {
        "switch": "put a release in the live one's place",
        "confirm": "make the release on trial current",
        "sweep": "remove the instances and releases that nobody needs",
        "return": "go back to what was live before",
        "migrate": "bring the database to what a release needs",
        "lock": "reserve this host for a run",
        "unlock": "give it back",
    }.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--about", type=json.loads, default={}, help="who changes what, as JSON")
        if name in ("switch", "confirm", "migrate"):
            command.add_argument("release")
        if name == "switch":
            command.add_argument("--confirm-within", type=int, default=0, metavar="SECONDS")
            command.add_argument("--renew", action="store_true", help="also when nothing has changed")
            command.add_argument("--check", type=json.loads, metavar="JSON", help="what to ask it then")
        if name == "migrate":
            for step in ("plan", "migrate", "back"):
                command.add_argument(f"--{step}", default="", help="arguments of the manage command")
        if name in ("confirm", "sweep"):
            command.add_argument("--keep", type=int, default=5, metavar="RELEASES")
        if name == "return":
            command.add_argument("--reason", default="asked for")
        if name == "lock":
            command.add_argument("--seconds", type=int, default=1800)
            command.add_argument("--force", action="store_true")
    return parser.parse_args()


def carry_out(service: Changes, options: argparse.Namespace) -> dict[str, Any]:
    origin = {"action": options.command, "by": "root", "from": os.uname().nodename}
    about = {**origin, **getattr(options, "about", {})}
    if options.command == "status":
        return service.status()
    if options.command == "boot":
        answer("systemctl", "start", service.unit(service.live))
        return {}
    if options.command == "leave":
        service.leave(options.instance, options.seconds)
        return {}
    result: dict[str, Any] = {}
    with alone(service):
        if options.command == "switch":
            release, within = options.release, options.confirm_within
            minting = service.mint(release, options.check["token_arguments"]) if options.check else None
            result = service.switch(release, about, confirm_within=within, renew=options.renew)
            if options.check:
                service.check(release, options.check, minting)
            return result
        if options.command == "sweep":
            service.sweep()
            service.prune(options.keep)
            return result
        if options.command == "migrate":
            commands = {"plan": options.plan, "migrate": options.migrate, "back": options.back}
            return service.migrate(options.release, commands)
        if options.command == "lock":
            return service.take_lock(about, options.seconds, force=options.force)
        if options.command == "confirm":
            result = service.confirm(options.release, about, options.keep)
        try:
            if options.command == "return":
                result = service.back(about, options.reason)
        finally:
            # A full disk takes no record, but it must not keep the next run out.
            service.drop_lock(about.get("run", ""))
        return result


def main() -> int:
    service = Changes(Path(sys.argv[0]).name.removesuffix("-release"))
    options = parse()
    if options.command == "history":
        sys.stdout.write(service.history_file.read_text() if service.history_file.exists() else "")
        return 0
    try:
        sys.stdout.write(json.dumps(carry_out(service, options)) + "\n")
    except (ReleaseError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
