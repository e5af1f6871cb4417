"""The always-on jobs of a service: each instance has units of its own, so that old and new ones overlap."""

from __future__ import annotations

import time
from pathlib import Path

from service import JOURNAL_LINES, UNITS, ReleaseError, Service, answer, read, succeeds

# A job that fails at its start does so within this time.
START_SECONDS = 3


class Workers(Service):
    """The units of always-on jobs, SERVICE-worker-JOB@INSTANCE.service."""

    @property
    def links(self) -> Path:
        """The directory of the links by which a boot starts the jobs."""
        return UNITS / f"{self.name}-workers.target.wants"

    def worker_units(self, instance: str) -> list[str]:
        """Return the units of an instance's always-on jobs."""
        suffix = f"@{instance}.service"
        found = (path.name for path in UNITS.glob(f"{self.name}-worker-*@*.service"))
        return sorted(name for name in found if name.endswith(suffix))

    def contents(self, instance: str) -> dict[Path, tuple[str, int]]:
        """Return the text and mode of an instance's files, with the units of its always-on jobs."""
        files = super().contents(instance)
        for source in sorted((self.etc / "workers").glob("*.service")):
            unit = UNITS / f"{self.name}-worker-{source.stem}@{instance}.service"
            files[unit] = (self.for_release(read(source), instance), 0o644)
        return files

    def is_up_to_date(self, instance: str) -> bool:
        """Return whether an instance is active with the present configuration, secrets and jobs."""
        units = [path.name for path in self.contents(instance) if path.parent == UNITS]
        wanted = sorted(name for name in units if name != self.unit(instance))
        return wanted == self.worker_units(instance) and super().is_up_to_date(instance)

    def is_in_use(self, instance: str) -> bool:
        """Return whether an instance serves, or its jobs finish their tasks."""
        return super().is_in_use(instance) or bool(self.worker_units(instance))

    def start_workers(self, instance: str) -> bool:
        """Start the jobs of an instance that do not run; return whether there were any."""
        idle = [
            unit
            for unit in self.worker_units(instance)
            if not succeeds("systemctl", "is-active", "--quiet", unit)
        ]
        if not idle:
            return False
        since = time.time()
        answer("systemctl", "start", *idle)
        time.sleep(START_SECONDS)
        for unit in idle:
            shown = answer("systemctl", "show", "--property=NRestarts,Result", unit).splitlines()
            if set(shown) != {"NRestarts=0", "Result=success"}:
                said = "\n".join(self.journal(unit, since)[-JOURNAL_LINES:])
                raise ReleaseError(f"{unit} did not keep running. Last lines of its journal:\n{said}")
        self.links.mkdir(exist_ok=True)
        for unit in idle:
            link = self.links / unit
            link.unlink(missing_ok=True)
            link.symlink_to(UNITS / unit)
        return True

    def stop_workers(self, instance: str) -> None:
        """Ask the jobs of an instance to stop, wait until they have finished their tasks, and remove them."""
        units = self.worker_units(instance)
        for unit in units:
            (self.links / unit).unlink(missing_ok=True)
        if not units:
            return
        answer("systemctl", "stop", *units)
        asked = ("show", "--property=Result", "--value")
        killed = [unit for unit in units if answer("systemctl", *asked, unit) == "timeout"]
        for unit in units:
            (UNITS / unit).unlink(missing_ok=True)
        answer("systemctl", "daemon-reload")
        succeeds("systemctl", "reset-failed", *units)
        if killed:
            raise ReleaseError(
                f"Killed before the end of a task, as stop_timeout is too short: {', '.join(killed)}"
            )

    def prune_instances(self) -> None:
        """Remove every instance but the promoted one and the canary, and let their jobs finish."""
        for path in UNITS.glob(f"{self.name}-worker-*@*.service"):
            instance = path.name.partition("@")[2].removesuffix(".service")
            if instance not in (self.current, self.canary):
                self.stop_workers_later(instance)
        super().prune_instances()

    def stop_workers_later(self, instance: str) -> None:
        """Stop the jobs of an instance in a unit of its own: the next change must not wait for a task."""
        unit = f"{self.name}-stop-workers@{instance}.service"
        succeeds("systemctl", "reset-failed", unit)
        succeeds(
            *("systemd-run", "--quiet", f"--unit={unit}"),
            f"--description={self.name}: let the jobs of {instance} finish",
            *(f"/usr/local/sbin/{self.name}-release", "stop-workers", instance),
        )
