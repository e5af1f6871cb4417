"""The hosts of the scenario `release`: deployments, load and checks."""

from __future__ import annotations

import http.client
import json
import shlex
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.lab import ROOT, Lab, Run, host_variables, play, wait_until
from tests.load.background import Load, loaded
from tests.load.report import OK, Report
from tests.release.variant import make

# Three of four requests read, one writes. Upper case uses a new connection.
MIX = "rrwrRlrwrrWrrlrwRrrw"

METRICS = """
import http.client, socket, sys
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("GET", "/metrics")
print(connection.getresponse().read().decode())
"""


@dataclass
class Step:
    """A release or rollback, and the version that is live after it."""

    version: str
    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        """The run time of the playbook."""
        return self.ended - self.begun


@dataclass
class Fleet:
    """An environment of one service behind one edge."""

    lab: Lab
    inventory: Path
    edge: str
    apps: tuple[str, ...]
    scratch: Path
    service: str = "api"
    versions: list[str] = field(default_factory=list)  # what was live, the last one is now
    built: int = 0
    begun: float = field(default_factory=time.time)
    measured: list[str] = field(default_factory=list)

    def play(self, name: str, *words: str, **extra: Any) -> Run:
        """Run one of the playbooks."""
        return play("-i", self.inventory, f"playbooks/{name}.yml", *words, "-e", json.dumps(extra))

    def build(self, fault: str = "") -> dict[str, str]:
        """Write the tree of the next version, and return the variables of its deploy."""
        self.built += 1
        version = f"1.0.{self.built}"
        make(self.scratch / "trees", version, fault)
        return self.source(version)

    def source(self, version: str) -> dict[str, str]:
        """Return the variables that deploy a version whose tree was written before."""
        return {
            "app_source": str(self.scratch / "trees" / version),
            "app_artifacts": str(ROOT / ".artifacts"),
        }

    def deploy(self, **extra: Any) -> Step:
        """Deploy the next version and check that every host runs it."""
        given = self.build()
        return self.deploy_version(Path(given["app_source"]).name, **given, **extra)

    def deploy_version(self, version: str, **extra: Any) -> Step:
        """Deploy a version with these variables and check that every host runs it."""
        return self._step("deploy", version, **extra)

    def redeploy(self, **extra: Any) -> Step:
        """Deploy the version that was live before, without a build, and check that every host runs it."""
        trees = {path.name for path in (self.scratch / "trees").iterdir()}
        version = next(v for v in reversed(self.versions) if v != self.versions[-1] and v in trees)
        return self.deploy_version(version, **self.source(version), **extra)

    def rollback(self) -> Step:
        """Roll back to the version before and check that every host runs it."""
        return self._step("rollback", self.versions[-2])

    def _step(self, playbook: str, version: str, **extra: Any) -> Step:
        begun = time.time()
        run = self.play(playbook, **extra)
        step = Step(version, begun, time.time())
        assert run.status == 0, run.output
        self.versions.append(version)
        # A deploy does not wait for the old instance's last answer, here a long poll; then it must be gone.
        self.wait_until_live(10)
        return step

    def ssh(self, host: str, command: str) -> str:
        """Run a command on a host and return its output."""
        return self.lab.ssh(host, command).strip()

    @cached_property
    def url(self) -> str:
        """The URL of the service."""
        return f"https://{self.lab.state['hosts'][self.edge]['address']}"

    @cached_property
    def ca(self) -> Path:
        """The CA certificate that clients trust."""
        path = self.scratch / "ca.crt"
        path.write_text(host_variables(self.inventory, self.edge)["tls_ca_certificate"])
        return path

    @cached_property
    def token(self) -> str:
        """A bearer token with write access."""
        arguments = "token --subject proof --scope products:write --lifetime 86400"
        return self.ssh(self.apps[0], f"{self.service}-manage {arguments}")

    def answers(self) -> bool:
        """Return whether the edge uses a host again: it avoids failed ones for a while."""
        edge = http.client.HTTPSConnection(
            self.url.removeprefix("https://"), timeout=5, context=ssl.create_default_context(cafile=self.ca)
        )
        with suppress(OSError), closing(edge):
            edge.request("GET", "/health/ready")
            return edge.getresponse().status == 200
        return False

    def traffic(self, mix: str) -> dict[str, Any]:
        """Return the requests of the load: reads, lists, writes, changes, and a permanent long poll."""
        products = "/api/v1/products"
        product = {"name": "{key}", "category": "proof", "price": "1.00", "stock": 1}
        write = {
            "path": products,
            "method": "POST",
            "headers": {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            "body": json.dumps(product),
            "status": 201,
            "expect": "{key}",
        }
        read = {"path": f"{products}/{self.product}", "expect": '"name":"Lamp"'}
        requests = {
            "r": read,
            "l": {"path": f"{products}?category=lamps", "expect": '"name":"Lamp"'},
            "s": {"path": "/api/v1/wait", "expect": "waited"},
            "w": write,
            "p": write | read | {"method": "PATCH", "body": '{"stock": 1}', "status": 200},
        }
        return {"mix": mix, "always": "s", "requests": requests}

    @cached_property
    def product(self) -> int:
        """The id of the product that the load reads."""
        values = "(name, category, price, stock) VALUES ('Lamp', 'lamps', 1, 1)"
        return int(self.sql(f"INSERT INTO products {values} RETURNING id"))

    def sql(self, statement: str) -> str:
        """Run SQL as the database's superuser and return its bare output."""
        return self.ssh(
            self.edge, f'runuser -u postgres -- psql --quiet -d {self.service} -Atc "{statement}"'
        )

    @contextmanager
    def load(self, run: str, rate: float, mix: str = MIX) -> Iterator[Load]:
        """Load the service while the block runs; then check that every acknowledged write is stored."""
        name, run = run, f"{run}-{time.time():.0f}"
        service = {"url": self.url, "ca": str(self.ca), "header": "x-version"}
        plan = {"run": run, "rate": rate, **service, **self.traffic(mix)}
        load = Load()
        try:
            with loaded(plan, self.scratch) as load:
                yield load
        finally:
            longest = max((s.seconds for s in load.report.samples if s.kind != "s"), default=0.0)
            lost, asked = len(load.report.failures), len(load.report.samples)
            self.measured.append(f"{name}: {lost} of {asked} requests lost, the longest took {longest:.1f} s")
        self.check_writes(run, load.report)

    def check_writes(self, run: str, report: Report) -> None:
        """Check that acknowledged writes are stored once, and those without an answer at most once."""
        writes = [sample for sample in report.samples if sample.kind == "w"]
        if not writes:
            return
        rows = Counter(self.sql(f"SELECT name FROM products WHERE name LIKE '{run}-%'").split())
        twice = [name for name, number in rows.items() if number > 1]
        assert not twice, f"written twice: {twice}"
        lost = [sample.key for sample in writes if sample.outcome == OK and sample.key not in rows]
        assert not lost, f"acknowledged and lost: {lost}"
        assert rows.keys() <= {sample.key for sample in writes}

    def check_rolled_back(self, run: Run, says: str) -> None:
        """Check that the run failed with this reason and that every host runs the old release."""
        assert run.status not in (0, None), run.output
        assert says in run.sentences[-1], run.sentences
        assert set(self.live().values()) == {self.versions[-1]}, run.output

    def wait_until_live(self, seconds: float) -> None:
        """Wait until every host runs the expected release and nothing else."""
        wait_until(seconds, lambda: set(self.live().values()) == {self.versions[-1]})

    def drain_unit(self, host: str) -> str:
        """Return the edge's unit that drains a host while it runs."""
        return f"nginx-drain@api-{self.lab.state['hosts'][host]['address'].replace('.', '-')}-8443.service"

    def runs(self, host: str, version: str) -> bool:
        """Return whether a host runs a version and nothing else."""
        return self.live_on(host) == version

    def ran(self, host: str, version: str) -> bool:
        """Return whether a host started a version in this session; an earlier one may have used it."""
        said = self.ssh(host, f"journalctl --since @{self.begun:.0f} --identifier systemd --output cat")
        return f"{self.service}: release {version}-" in said

    def digest(self, version: str) -> dict[str, str]:
        """Return a digest of a version's files on each host: names, modes, links and contents."""
        place = f"cd /srv/{self.service}/releases/{version}-*"
        files = "find . -type f -exec sha256sum {} + | sort -k 2"
        names = "find . -printf '%p %M %u %g %l\\n' | sort"
        return {host: self.ssh(host, f"{place} && ({files}; {names}) | sha256sum") for host in self.apps}

    def counted(self) -> float:
        """Return the number of lists that the services have counted; only the load requests them."""
        series = 'http_requests_total{method="GET",route="/api/v1/products",status="200"}'
        command = shlex.join(["python3", "-c", METRICS, f"/run/{self.service}/{self.service}.sock"])
        texts = "".join(self.ssh(host, command) + "\n" for host in self.apps)
        return sum(float(line.split()[-1]) for line in texts.splitlines() if line.startswith(series))

    def directory_of(self, version: str) -> str:
        """Return the directory of a version."""
        return self.ssh(self.apps[0], f"ls -dt /srv/{self.service}/releases/{version}-* | head -1")

    def live(self) -> dict[str, str]:
        """Return the version of each app host, which is promoted and runs as one instance."""
        return {host: self.live_on(host) for host in self.apps}

    def live_on(self, host: str) -> str:
        """Return the version of a host's one instance; fail if there is a canary or another instance."""
        service = self.service
        units = f"systemctl list-units --plain --no-legend --all '{service}@*.service'"
        looked = self.ssh(
            host,
            f"readlink /srv/{service}/current; cat /srv/{service}/current/release.json | tr -d '\\n'; echo;"
            f" ls /run/{service} | grep canary; {units}",
        )
        current, release, *others = looked.splitlines()
        assert [line.split()[:4] for line in others] == [
            [f"{service}@{Path(current).name}.service", "loaded", "active", "running"]
        ], f"{host} should run {current} alone: {others}"
        return str(json.loads(release)["version"])
