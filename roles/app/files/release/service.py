"""The releases and instances of a service on this host, their records and the lock."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from files import write_atomically
from history import read_history
from lint import rollback_barrier

# An upgrade of the operating system brings another Python, with which no earlier release starts.
PYTHON = "{}.{}".format(*sys.version_info)

UNITS = Path("/etc/systemd/system")
# Gunicorn's configuration and modules, of which each instance has copies.
PROGRAMS = ("gunicorn.conf.py", "gunicorn_worker.py", "gunicorn_app.py")
# Lines of the journal that a failure shows.
JOURNAL_LINES = 15


def point(link: Path, target: Path) -> None:
    """Point a link to a directory, atomically."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


class ReleaseError(Exception):
    """A failure, as one sentence for the operator."""


def answer(*argv: str) -> str:
    """Run a command and return its output; raise ReleaseError with its last line of errors."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        # systemd-run is silent if the unit's process could not even be prepared.
        silent = f"status {done.returncode} without a word; `journalctl -n 20` may know more"
        words = (done.stderr or done.stdout).strip().splitlines() or [silent]
        raise ReleaseError(f"`{' '.join(argv)}` failed: {words[-1]}")
    return done.stdout.strip()


def succeeds(*argv: str) -> bool:
    """Return whether a command exits with status 0."""
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def read(path: Path) -> str:
    """Return the exact text of a file; read_text() would translate the ends of lines."""
    return path.read_bytes().decode()


def release_of(instance: str) -> str:
    """Return the release of an instance."""
    return instance.rpartition(".")[0]


def now() -> str:
    """Return the time in UTC, as the records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Service:
    """The releases and instances of one service on this host."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.etc = Path("/etc", name)
        self.srv = Path("/srv", name)
        self.run = Path("/run", name)
        self.instances = self.srv / "instances"
        self.history_file = self.srv / "history.jsonl"
        # In /run like the canary: after a crash and a boot no run owns the host any more.
        self.lock_file = self.run / "deploy.lock"

    # --- state

    def pointer(self, link: Path) -> str:
        """Return the name of the instance that a link points to, or nothing."""
        return link.readlink().name if link.is_symlink() else ""

    @property
    def current(self) -> str:
        """The promoted instance, which a boot starts."""
        return self.pointer(self.srv / "current")

    @property
    def canary(self) -> str:
        """The instance that serves but is not promoted yet."""
        return self.pointer(self.run / "canary")

    @property
    def live(self) -> str:
        """The instance that serves."""
        return self.canary or self.current

    def unit(self, instance: str) -> str:
        """Return the systemd unit of an instance."""
        return f"{self.name}@{instance}.service"

    def history(self) -> list[dict[str, Any]]:
        """Return the records of all changes, oldest first."""
        return read_history(self.history_file)

    def previous(self) -> str:
        """Return the release that was live before the present one and can be again, or nothing."""
        live = release_of(self.live)
        for entry in reversed(self.history()):
            release = str(entry["release"])
            if entry["result"] == "ok" and release != live and self.is_candidate(release):
                return release
        return ""

    def candidates(self) -> list[str]:
        """Return every installed release that was live and can be again."""
        lived = {str(entry["release"]) for entry in self.history() if entry["result"] == "ok"}
        return sorted(filter(self.is_candidate, lived))

    def is_candidate(self, release: str) -> bool:
        """Return whether a release is installed for a Python of this host and has not failed."""
        home = self.srv / "releases" / release
        return self.has_python(release) and not (home / "failed.json").exists()

    def python(self, release: str) -> str:
        """Return the Python that a release was installed for, or nothing if it is not installed."""
        marker = self.srv / "releases" / release / "release.json"
        return str(json.loads(marker.read_text())["python"]) if marker.exists() else ""

    def own_python(self, release: str) -> Path | None:
        """Return the directory of the Python that a release brings, or None if it runs with the host's."""
        link = self.srv / "releases" / release / "venv/bin/python3"
        home = link.readlink().parent.parent if link.is_symlink() else None
        return home if home and home.parent == self.srv / "pythons" else None

    def has_python(self, release: str) -> bool:
        """Return whether a release has its Python: its own, or that of this host."""
        own = self.own_python(release)
        return own.exists() if own else self.python(release) == PYTHON

    def barriers(self) -> dict[str, str]:
        """Return the releases that cannot work with the migrated database any more, each with the reason."""
        found: dict[str, str] = {}
        barrier = ""
        # Newest first, by the first time each was live: its code does not know later migrations.
        releases = dict.fromkeys(str(entry["release"]) for entry in self.history() if entry["result"] == "ok")
        for release in reversed(releases):
            if barrier:
                found[release] = barrier
            home = self.srv / "releases" / release
            plan, point = home / "migration.sql", home / "restore-point"
            if plan.exists() and (revision := rollback_barrier(plan.read_text())):
                barrier = f"{release} brought it to revision {revision}"
                if point.exists():
                    barrier += f"; restore.yml -e target=restore_point={point.read_text()} undoes that, and"
                    barrier += " all that was written since"
        return found

    def lock(self) -> dict[str, Any]:
        """Return the lock of a run, or nothing."""
        return json.loads(self.lock_file.read_text()) if self.lock_file.exists() else {}

    def status(self) -> dict[str, Any]:
        """Return what `SERVICE-release status` prints."""
        live = self.live
        return {
            "release": release_of(live),
            "instance": live,
            "unit": self.unit(live) if live else "",
            "active": bool(live) and succeeds("systemctl", "is-active", "--quiet", self.unit(live)),
            "canary": bool(self.canary),
            "promoted": release_of(self.current),
            "previous": self.previous(),
            "candidates": self.candidates(),
            "barriers": self.barriers(),
            "lock": self.lock(),
        }

    # --- records

    def record(self, metadata: dict[str, Any], **more: Any) -> None:
        """Append a change to the history."""
        entry = {"time": now(), **metadata, **more}
        if self.holds_lock(metadata.get("run", "")):
            entry["seconds"] = round(time.time() - self.lock_file.stat().st_mtime, 1)
        whole = not self.history_file.exists() or self.history_file.read_bytes()[-1:] in (b"", b"\n")
        with self.history_file.open("a") as stream:
            stream.write(("" if whole else "\n") + json.dumps(entry) + "\n")

    def mark_failed(self, release: str, reason: str) -> None:
        """Keep a release from being a rollback's target."""
        home = self.srv / "releases" / release
        if home.is_dir():
            write_atomically(home / "failed.json", json.dumps({"time": now(), "reason": reason}) + "\n")

    # --- instances

    def contents(self, instance: str) -> dict[Path, tuple[str, int]]:
        """Return the text and mode of an instance's files, from the present configuration and secrets."""

        def text(name: str) -> str:
            return self.for_release(read(self.etc / name), instance)

        home, unit = self.instances / instance, text("instance.service")
        return {
            home / "env": (text(f"{self.name}.env"), 0o600),
            **{home / name: (text(name), 0o644) for name in PROGRAMS},
            UNITS / self.unit(instance): (unit, 0o644),
        } | {
            home / "credentials" / name: (read(self.etc / "credentials" / name), 0o400)
            for name in re.findall(r"^LoadCredential=(\w+):", unit, re.MULTILINE)
        }

    def for_release(self, text: str, instance: str) -> str:
        """Return the text of a file of the configuration for an instance's release."""
        release = release_of(instance)
        home = self.srv / "releases" / release
        return text.replace("@RELEASE@", release).replace("@CODE@", str(home / "code"))

    def is_in_use(self, instance: str) -> bool:
        """Return whether an instance serves."""
        return instance in (self.current, self.canary)

    def is_up_to_date(self, instance: str) -> bool:
        """Return whether an instance is active with the present configuration and secrets."""
        for path, (text, _) in self.contents(instance).items():
            if not path.exists() or read(path) != text:
                return False
        return succeeds("systemctl", "is-active", "--quiet", self.unit(instance))

    def prepare(self, release: str) -> str:
        """Create the next instance of a release and its unit; return its name."""
        python = self.python(release)
        if not python:
            raise ReleaseError(f"There is no release {release} on this host: deploy it.")
        if not self.has_python(release):
            raise ReleaseError(
                f"{release} was installed for Python {python}, and this host has {PYTHON} since:"
                " install it anew by deploy.yml, with the code it was built from in app_source"
            )
        number = 1
        while self.is_in_use(f"{release}.{number}"):
            number += 1
        instance = f"{release}.{number}"
        self.discard(instance)
        home = self.instances / instance
        home.mkdir(parents=True)
        (home / "credentials").mkdir(0o700)
        contents = self.contents(instance)
        for path, (text, mode) in contents.items():
            write_atomically(path, text, mode)
        self.prepare_state(contents[UNITS / self.unit(instance)][0])
        for name in ("venv", "code", "release.json"):
            (home / name).symlink_to(Path("../../releases", release, name))
        # systemd finds a new unit without a reload, which takes as long as everything else here.
        asked = ("show", "--property=NeedDaemonReload", "--value", self.unit(instance))
        if answer("systemctl", *asked) == "yes":
            answer("systemctl", "daemon-reload")
        return instance

    def prepare_state(self, unit: str) -> None:
        """Create the directories of the state, and those in the code on which a unit mounts them."""
        if (state := Path(f"/etc/tmpfiles.d/{self.name}.conf")).exists():
            answer("systemd-tmpfiles", "--create", str(state))
        for path in re.findall(r"^BindPaths=\S+?:(\S+)$", unit, re.MULTILINE):
            Path(path).mkdir(parents=True, exist_ok=True)

    def start(self, instance: str) -> None:
        """Start an instance; it takes traffic once its startup probe has succeeded."""
        probe = self.run / "startup-probe"
        since = time.time()
        self.run.mkdir(exist_ok=True)
        write_atomically(probe, instance)
        try:
            answer("systemctl", "start", self.unit(instance))
        except ReleaseError:
            unit = self.unit(instance)
            said = self.journal(unit, since)
            # What the workers said of their startup probe, in a line of text or of JSON.
            found = re.findall(r"Startup probe: (GET \S+ (?:answered \d+|was not answered))", "\n".join(said))
            reason = f": {found[-1]}" if found else ""
            last = "\n".join(said[-JOURNAL_LINES:])
            raise ReleaseError(
                f"{unit} did not get ready{reason}. Last lines of its journal:\n{last}"
            ) from None
        finally:
            probe.unlink(missing_ok=True)

    def journal(self, unit: str, since: float) -> list[str]:
        """Return a unit's lines since a time, 1000 at most."""
        # Debian 12 shows the first lines instead of the last ones of a range, so newest first.
        lines = ("--reverse", "--lines", "1000", "--no-pager", "--output", "cat")
        newest = answer("journalctl", "--unit", unit, "--since", f"@{int(since)}", *lines)
        return newest.splitlines()[::-1]

    def retire(self, instance: str) -> None:
        """Stop an instance after its in-flight requests, without waiting for it."""
        if instance:
            answer("systemctl", "stop", "--no-block", self.unit(instance))

    def announce_shutdown(self, instance: str, seconds: float) -> None:
        """Turn the live instance's readiness off and wait; a replaced instance has a ready successor."""
        if instance == self.live and "MAINPID" in os.environ:  # or its process has ended already
            Path(f"/run/{self.name}-{instance}", "shutdown").touch()
            time.sleep(seconds)

    def discard(self, instance: str) -> None:
        """Stop an instance and remove it; its release stays."""
        if not instance:
            return
        unit = UNITS / self.unit(instance)
        if unit.exists():
            answer("systemctl", "stop", self.unit(instance))
            unit.unlink()
            answer("systemctl", "daemon-reload")
            succeeds("systemctl", "reset-failed", self.unit(instance))
        shutil.rmtree(self.instances / instance, ignore_errors=True)

    def prune_instances(self) -> None:
        """Remove every instance but the promoted one and the canary, a killed run's too."""
        for home in self.instances.iterdir():
            if home.name not in (self.current, self.canary):
                self.discard(home.name)

    def replace_link(self, link: Path, instance: str) -> None:
        """Point a link to an instance, atomically and durably."""
        before = release_of(self.current)
        point(link, self.instances / instance)
        if link.name == "current" and before not in ("", release_of(instance)):
            # Nginx finds the files of a page that was loaded before the release.
            point(self.srv / "previous", self.srv / "releases" / before)
        os.sync()

    # --- the lock of a run, on every host of the fleet

    def take_lock(self, metadata: dict[str, Any], seconds: int, *, break_lock: bool) -> dict[str, Any]:
        """Reserve the host for one run; the lock expires, as a killed run cannot release it."""
        held = self.lock()
        if held and held["run"] != metadata["run"] and held["until"] > time.time() and not break_lock:
            raise ReleaseError(
                f"{held['by']} on {held['from']} holds the lock since {held['time']} for: {held['what']}."
                f" It expires in {held['until'] - time.time():.0f} s;"
                " if that run is dead, break it with -e app_break_lock=true"
            )
        self.run.mkdir(exist_ok=True)
        what = f"{metadata['action']} {metadata.get('what', '')}".strip()
        lock = {name: metadata[name] for name in ("run", "by", "from")} | {"time": now(), "what": what}
        write_atomically(self.lock_file, json.dumps({**lock, "until": round(time.time() + seconds)}) + "\n")
        return self.status()

    def holds_lock(self, run_id: str) -> bool:
        """Return whether a run holds this host's lock."""
        return bool(run_id) and self.lock().get("run") == run_id

    def drop_lock(self, run_id: str) -> None:
        """Release the lock if this run holds it."""
        if self.holds_lock(run_id):
            self.lock_file.unlink()
