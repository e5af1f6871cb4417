"""The host of the scenario `apps`: four applications, each in the repository of its authors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.edge import Answer, Site
from tests.lab import ROOT, Lab, Run, host_variables, play, wait_until
from tests.load.background import Load, loaded

HOST = "apps1"


@dataclass
class Apps:
    """The host with its four services."""

    scratch: Path
    lab: Lab = field(default_factory=lambda: Lab("molecule-apps"))
    inventory: Path = ROOT / "molecule/apps/inventory"

    @cached_property
    def address(self) -> str:
        """The address of the host."""
        return str(self.lab.state["hosts"][HOST]["address"])

    @cached_property
    def ca(self) -> Path:
        """The CA certificate that clients trust."""
        path = self.scratch / "ca.crt"
        path.write_text(host_variables(self.inventory, HOST)["tls_ca_certificate"])
        return path

    def ssh(self, command: str) -> str:
        """Run a command on the host and return its output."""
        return self.lab.ssh(HOST, command).strip()

    def play(self, playbook: str, service: str, **extra: Any) -> Run:
        """Run a playbook for one service."""
        words = json.dumps({"service": service, **extra})
        return play("-i", self.inventory, f"playbooks/{playbook}.yml", "-e", words)

    def site(self, service: str) -> Site:
        """Return a client of a service's public name."""
        return Site(self.address, f"{service}.test", self.ca.read_text(), {})

    def ask(
        self,
        service: str,
        path: str,
        method: str = "GET",
        body: Any = None,
        form: Mapping[str, str] | None = None,
        **headers: str,
    ) -> Answer:
        """Send one request with a JSON body, a form or neither, and with headers named in snake case."""
        content = urlencode(form) if form else None if body is None else json.dumps(body)
        kind = "application/x-www-form-urlencoded" if form else "application/json"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.site(service).request(path, method, {"Content-Type": kind, **named}, body=content)

    def release(self, service: str) -> str:
        """Return the release that a service runs; fail if there is a canary or another instance."""
        units = f"systemctl list-units --plain --no-legend --all '{service}@*.service'"
        current, *others = self.ssh(f"readlink /srv/{service}/current; {units}").splitlines()
        release = Path(current).name
        assert [line.split()[:4] for line in others] == [
            [f"{service}@{release}.service", "loaded", "active", "running"]
        ], f"{service} should run {release} alone: {others}"
        return release

    def environment(self, service: str) -> dict[str, str]:
        """Return the variables of the process that serves, as the kernel has them."""
        pid = f"$(systemctl show --value --property MainPID {service}@{self.release(service)})"
        lines = self.ssh(f"tr '\\0' '\\n' < /proc/{pid}/environ").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def repository(self, service: str) -> Path:
        """Return the repository of an application, which a release takes its source from."""
        return self.lab.directory / "sources" / service

    def deploy(self, service: str) -> float:
        """Deploy what the repository has now, and return the seconds."""
        return self._step("deploy", service)

    def rollback(self, service: str) -> float:
        """Roll back to the release before, and return the seconds."""
        return self._step("rollback", service)

    def _step(self, playbook: str, service: str) -> float:
        begun, before = time.time(), self.release(service)
        run = self.play(playbook, service)
        seconds = time.time() - begun
        assert run.status == 0, run.output
        # The old instance finishes its last requests.
        wait_until(30, lambda: self.release(service) != before)
        return seconds

    @contextmanager
    def load(self, plans: Mapping[str, Mapping[str, Any]], rate: float) -> Iterator[dict[str, Load]]:
        """Load the services while the block runs."""
        with ExitStack() as stack:
            yield {
                service: stack.enter_context(
                    loaded(
                        {
                            "run": f"{service}-{time.time():.0f}",
                            "rate": rate,
                            "url": f"https://{service}.test",
                            "address": self.address,
                            "ca": str(self.ca),
                            **plan,
                        },
                        self.scratch,
                    )
                )
                for service, plan in plans.items()
            }

