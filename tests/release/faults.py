"""Faults that are injected during a release."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab import ROOT, Run, clean_environment
from tests.release.fleet import Fleet

SMALL_DISK = "/var/tmp/small"  # noqa: S108 - on a lab host


class Deploy:
    """A deploy that runs beside the test."""

    def __init__(self, fleet: Fleet, log: Path, **extra: Any) -> None:
        playbook: list[str | Path] = ["ansible-playbook", "-i", fleet.inventory, "playbooks/deploy.yml"]
        playbook += ["-e", json.dumps(extra)]
        environment = clean_environment(ANSIBLE_CALLBACK_RESULT_FORMAT="json", PYTHONUNBUFFERED="1")
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                playbook, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def wait_for(self, task: str, times: int = 1) -> None:
        """Wait until a task has begun, in this many batches."""
        deadline = time.monotonic() + 400
        while self.log.read_text().count(f"TASK [app : {task}") < times:
            assert self.process.poll() is None, f"ended before {task}: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"no {task} in {self.log.read_text()}"
            time.sleep(0.05)

    def end(self, how: signal.Signals) -> None:
        """Signal every process of the group, as Ctrl-C does; again, as Python loses a SIGINT in a fork."""
        while self.process.poll() is None:
            os.killpg(self.process.pid, how)
            time.sleep(0.5)

    def wait(self) -> Run:
        """Wait for the end and return the result."""
        return Run(self.process.wait(200), self.log.read_text())


@contextmanager
def deploying(fleet: Fleet, given: dict[str, str], **extra: Any) -> Iterator[Deploy]:
    """Deploy while the block runs, and wait for the end after it."""
    deploy = Deploy(fleet, fleet.scratch / f"deploy-{fleet.built}.log", **given, **extra)
    try:
        yield deploy
        deploy.wait()
    finally:
        if deploy.process.poll() is None:
            os.killpg(deploy.process.pid, signal.SIGKILL)


@contextmanager
def transaction(fleet: Fleet, statement: str) -> Iterator[None]:
    """Hold the locks of a statement while the block runs."""
    psql = f"runuser -u postgres -- psql -d {fleet.service}"
    held = f'{psql} -c "BEGIN" -c "{statement}" -c "SELECT pg_sleep(300)"'
    command: list[str | Path] = ["ssh", "-F", fleet.lab.directory / "ssh_config", fleet.edge, held]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield
    finally:
        fleet.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
        )
        process.wait(10)


@contextmanager
def small_disk(fleet: Fleet, host: str) -> Iterator[Callable[[], None]]:
    """Put the host's releases on a small disk while the block runs; yields a function that fills it."""
    home = f"/srv/{fleet.service}"
    mount = f"mkdir -p {SMALL_DISK} && mount -t tmpfs -o size=1g small {SMALL_DISK}"
    fleet.ssh(host, f"{mount} && cp -a {home}/. {SMALL_DISK} && mount --bind {SMALL_DISK} {home}")

    def fill() -> None:
        fleet.ssh(host, f"cat /dev/zero > {home}/filler || test -s {home}/filler")

    try:
        yield fill
    finally:
        fleet.ssh(host, f"rm -f {home}/filler && umount -l {home} && cp -au {SMALL_DISK}/. {home}")
        fleet.ssh(host, f"umount {SMALL_DISK}")


@contextmanager
def unreachable(fleet: Fleet) -> Iterator[None]:
    """Drop SSH between this machine and the app hosts while the block runs; clients are not affected."""
    addresses = ", ".join(fleet.lab.state["hosts"][host]["address"] for host in fleet.apps)
    with dropping(fleet, f"ip daddr {{ {addresses} }} tcp dport 22"):
        yield


@contextmanager
def only_ssh(fleet: Fleet) -> Iterator[None]:
    """Drop all but SSH from this machine to every host while the block runs, as a bastion does."""
    with dropping(fleet, f"ip daddr {fleet.lab.state['subnet']}.0/24 tcp dport != 22"):
        yield


@contextmanager
def dropping(fleet: Fleet, packets: str) -> Iterator[None]:
    """Drop packets that this machine sends, by an nft expression, while the block runs."""
    table = f"cut_{fleet.lab.name.replace('-', '_')}"
    rules = f"""
    table inet {table} {{
      chain output {{
        type filter hook output priority 0;
        {packets} drop
      }}
    }}
    """
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", table], check=True)
