"""What releases and instances of a service there are on this host, and their records and lock."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lint import closes_the_way_back

# An upgrade of the operating system brings another, with which no release from before it starts.
PYTHON = "{}.{}".format(*sys.version_info)


class ReleaseError(Exception):
    """One sentence for the operator."""


def answer(*argv: str) -> str:
    """Run a command and return what it says; a failure is told in its own words."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise ReleaseError(f"`{' '.join(argv)}` failed: {words[-1]}")
    return done.stdout.strip()


def succeeds(*argv: str) -> bool:
    """Tell whether a command has status 0."""
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def release_of(instance: str) -> str:
    return instance.rpartition(".")[0]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one move."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.chmod(mode)
    fresh.replace(path)


class Service:
    """The releases and instances of one service on this host."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.etc = Path("/etc", name)
        self.srv = Path("/srv", name)
        self.run = Path("/run", name)
        self.instances = self.srv / "instances"
        self.history_file = self.srv / "history.jsonl"
        # A boot forgets it, as it forgets the trial: no run owns a host that went down under it.
        self.lock_file = self.run / "deploy.lock"

    # --- what there is

    def pointer(self, link: Path) -> str:
        return link.readlink().name if link.is_symlink() else ""

    @property
    def current(self) -> str:
        return self.pointer(self.srv / "current")

    @property
    def trial(self) -> str:
        return self.pointer(self.run / "trial")

    @property
    def live(self) -> str:
        return self.trial or self.current

    def unit(self, instance: str) -> str:
        return f"{self.name}@{instance}.service"

    def history(self) -> list[dict[str, Any]]:
        lines = self.history_file.read_text().splitlines() if self.history_file.exists() else []
        entries = []
        for line in lines:
            # A power cut or a full disk may leave half a line.
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return entries

    def previous(self) -> str:
        """Return the release that was live before the present one and could be again."""
        live = release_of(self.live)
        for entry in reversed(self.history()):
            release = str(entry["release"])
            if entry["result"] == "ok" and release != live and self.is_candidate(release):
                return release
        return ""

    def candidates(self) -> list[str]:
        """Return every release that was live, is still here and may go live again."""
        lived = {str(entry["release"]) for entry in self.history() if entry["result"] == "ok"}
        return sorted(filter(self.is_candidate, lived))

    def is_candidate(self, release: str) -> bool:
        home = self.srv / "releases" / release
        return self.python(release) == PYTHON and not (home / "failed.json").exists()

    def python(self, release: str) -> str:
        """Return the Python that a release was installed for, or nothing where it is not installed."""
        marker = self.srv / "releases" / release / "release.json"
        return str(json.loads(marker.read_text())["python"]) if marker.exists() else ""

    def barriers(self) -> dict[str, str]:
        """Return why earlier releases cannot work with the database any more, for those that cannot."""
        found: dict[str, str] = {}
        barrier = ""
        # Newest first, by the first time each was live: later migrations are strange to its code.
        releases = dict.fromkeys(str(entry["release"]) for entry in self.history() if entry["result"] == "ok")
        for release in reversed(releases):
            if barrier:
                found[release] = barrier
            plan = self.srv / "releases" / release / "migration.sql"
            if plan.exists() and (revision := closes_the_way_back(plan.read_text())):
                barrier = f"{release} brought it to revision {revision}"
        return found

    def lock(self) -> dict[str, Any]:
        return json.loads(self.lock_file.read_text()) if self.lock_file.exists() else {}

    def status(self) -> dict[str, Any]:
        live = self.live
        return {
            "release": release_of(live),
            "instance": live,
            "unit": self.unit(live) if live else "",
            "active": bool(live) and succeeds("systemctl", "is-active", "--quiet", self.unit(live)),
            "on_trial": bool(self.trial),
            "confirmed": release_of(self.current),
            "previous": self.previous(),
            "candidates": self.candidates(),
            "barriers": self.barriers(),
            "lock": self.lock(),
        }

    # --- records

    def record(self, about: dict[str, Any], **more: Any) -> None:
        entry = {"time": now(), **about, **more}
        if self.holds_lock(about.get("run", "")):
            entry["seconds"] = round(time.time() - self.lock_file.stat().st_mtime, 1)
        whole = not self.history_file.exists() or self.history_file.read_bytes()[-1:] in (b"", b"\n")
        with self.history_file.open("a") as stream:
            stream.write(("" if whole else "\n") + json.dumps(entry) + "\n")

    def mark_failed(self, release: str, reason: str) -> None:
        home = self.srv / "releases" / release
        if home.is_dir():
            write(home / "failed.json", json.dumps({"time": now(), "reason": reason}) + "\n")

    # --- instances

    def contents(self, release: str) -> dict[str, tuple[Path, str, int]]:
        """Return what an instance of a release is made of, as the configuration is now."""

        def text(name: str) -> str:
            return (self.etc / name).read_text().replace("@RELEASE@", release)

        return {
            "env": (self.etc / f"{self.name}.env", text(f"{self.name}.env"), 0o600),
            "gunicorn.conf.py": (self.etc / "gunicorn.conf.py", text("gunicorn.conf.py"), 0o644),
            "unit": (self.etc / "instance.service", text("instance.service"), 0o644),
        }

    def is_up_to_date(self, instance: str) -> bool:
        """Tell whether an instance runs with the configuration and the credentials as they are now."""
        home, unit = self.instances / instance, Path("/etc/systemd/system", self.unit(instance))
        for name, (_, text, _) in self.contents(release_of(instance)).items():
            path = unit if name == "unit" else home / name
            if not path.exists() or path.read_text() != text:
                return False
        given = Path("/run/credentials", self.unit(instance))
        for credential in given.iterdir() if given.is_dir() else ():
            wanted = self.etc / "credentials" / credential.name
            if not wanted.exists() or wanted.read_bytes() != credential.read_bytes():
                return False
        return succeeds("systemctl", "is-active", "--quiet", self.unit(instance))

    def prepare(self, release: str) -> str:
        """Make the next instance of a release and its unit; return its name."""
        python = self.python(release)
        if not python:
            raise ReleaseError(f"There is no release {release} on this host: deploy it.")
        if python != PYTHON:
            raise ReleaseError(
                f"{release} was installed for Python {python}, and this host has {PYTHON} since:"
                " install it anew by deploy.yml, with the code it was built from in app_source"
            )
        number = 1
        while f"{release}.{number}" in (self.current, self.trial):
            number += 1
        instance = f"{release}.{number}"
        self.discard(instance)
        home = self.instances / instance
        home.mkdir(parents=True)
        for name, (_, text, mode) in self.contents(release).items():
            unit = Path("/etc/systemd/system", self.unit(instance))
            write(unit if name == "unit" else home / name, text, mode)
        for name in ("venv", "release.json"):
            (home / name).symlink_to(Path("../../releases", release, name))
        # It finds a new unit by itself, and reading all units again takes as long as everything else here.
        asked = ("show", "--property=NeedDaemonReload", "--value", self.unit(instance))
        if answer("systemctl", *asked) == "yes":
            answer("systemctl", "daemon-reload")
        return instance

    def start(self, instance: str) -> None:
        """Start an instance, which proves itself before it takes traffic."""
        proving = self.run / "proving"
        since = time.time()
        self.run.mkdir(exist_ok=True)
        write(proving, instance)
        try:
            answer("systemctl", "start", self.unit(instance))
        except ReleaseError:
            lines = ("--since", f"@{since:.0f}", "--lines", "15", "--no-pager", "--output", "cat")
            journal = answer("journalctl", "--unit", self.unit(instance), *lines)
            raise ReleaseError(
                f"{self.unit(instance)} did not get ready. Last lines of its journal:\n{journal}"
            ) from None
        finally:
            proving.unlink(missing_ok=True)

    def retire(self, instance: str) -> None:
        """Let an instance answer what it has accepted, and stop."""
        if instance:
            answer("systemctl", "stop", "--no-block", self.unit(instance))

    def leave(self, instance: str, seconds: float) -> None:
        """Say that the live instance is about to stop; one that was replaced leaves no gap to tell of."""
        if instance == self.live and "MAINPID" in os.environ:  # or it has died already
            Path(f"/run/{self.name}-{instance}", "drain").touch()
            time.sleep(seconds)

    def discard(self, instance: str) -> None:
        """Stop an instance and remove it; its release stays."""
        if not instance:
            return
        unit = Path("/etc/systemd/system", self.unit(instance))
        if unit.exists():
            answer("systemctl", "stop", self.unit(instance))
            unit.unlink()
            answer("systemctl", "daemon-reload")
            succeeds("systemctl", "reset-failed", self.unit(instance))
        shutil.rmtree(self.instances / instance, ignore_errors=True)

    def sweep(self) -> None:
        """Remove every instance that neither serves nor may have to again, a killed run's too."""
        for home in self.instances.iterdir():
            if home.name not in (self.current, self.trial):
                self.discard(home.name)

    def point(self, link: Path, instance: str) -> None:
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self.instances / instance)
        fresh.replace(link)
        os.sync()

    # --- the lock over the fleet

    def take_lock(self, about: dict[str, Any], seconds: int, *, force: bool) -> dict[str, Any]:
        """Reserve the host for one run; it lapses by itself, as a killed run cannot give it back."""
        held = self.lock()
        if held and held["run"] != about["run"] and held["until"] > time.time() and not force:
            raise ReleaseError(
                f"{held['by']} on {held['from']} holds the lock since {held['time']} for: {held['what']}."
                f" It lapses by itself in {held['until'] - time.time():.0f} s;"
                " if that run is dead, break it with -e app_break_lock=true"
            )
        self.run.mkdir(exist_ok=True)
        what = f"{about['action']} {about.get('what', '')}".strip()
        lock = {"run": about["run"], "by": about["by"], "from": about["from"], "time": now(), "what": what}
        write(self.lock_file, json.dumps({**lock, "until": round(time.time() + seconds)}) + "\n")
        return self.status()

    def holds_lock(self, run_id: str) -> bool:
        return bool(run_id) and self.lock().get("run") == run_id

    def drop_lock(self, run_id: str) -> None:
        if self.holds_lock(run_id):
            self.lock_file.unlink()
