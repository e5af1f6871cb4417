"""The container image, built from a local Debian base and run against Postgres and Redis."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import pytest

from tests.lab import LABCTL, ROOT, play

# Beside the lab hosts, which need overlays of the file system too.
STORAGE = ROOT / ".lab/pytest-image"
SECRET = "Zk3vQ9xN7mB2wL5tR8yU1cP4aH6jD0fGsTeXoV"
USER = 10001
BUILD_TOOLS = ("pip", "pip3", "uv", "gcc", "cc", "make", "ansible", "git")

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("service_lab")]


@dataclass
class Builder:
    """Buildah with a storage of its own, and a base image that all runs on this machine share."""

    command: list[str]
    base: str

    def __call__(self, *arguments: str | Path) -> str:
        """Run buildah and return its output."""
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def remove_storage(self) -> None:
        """Remove all images and containers but the base."""
        if STORAGE.exists():
            self("umount", "--all")
            shutil.rmtree(STORAGE)


@pytest.fixture(scope="module")
def buildah() -> Iterator[Builder]:
    """Return a builder whose base image is the lab's Debian 13, which has Python 3.13."""
    spec = util.spec_from_file_location("labctl", LABCTL)
    assert spec
    assert spec.loader
    labctl = util.module_from_spec(spec)
    spec.loader.exec_module(labctl)
    debian = labctl.build_image("trixie", print)
    shared = labctl.CACHE / f"containers-{debian.name}"
    run = labctl.RUN / shared.name
    maker = Builder(
        ["buildah", f"--root={shared}", f"--runroot={run}", "--storage-driver=overlay"], "localhost/debian"
    )
    with labctl.locked(shared.with_suffix(".lock")):
        if maker.base not in maker("images", "--format={{.Name}}").splitlines():
            container = maker("from", "scratch")
            subprocess.run(["cp", "--archive", f"{debian}/.", maker("mount", container)], check=True)
            maker("commit", "--quiet", "--rm", container, maker.base)
    options = ["--storage-driver=overlay", f"--storage-opt=overlay.imagestore={shared}"]
    buildah = Builder(["buildah", f"--root={STORAGE}/root", f"--runroot={STORAGE}/run", *options], maker.base)
    buildah.remove_storage()
    yield buildah
    buildah.remove_storage()


@pytest.fixture(scope="module")
def image(buildah: Builder) -> dict[str, Any]:
    """Build the image and return its name and configuration."""
    name = "localhost/api:test"
    variables = {"app_image_base": buildah.base, "app_image_builder": buildah.command, "app_image_tag": name}
    run = play("playbooks/image.yml", "-e", json.dumps(variables), BUILDAH_ISOLATION="chroot")
    assert run.status == 0, run.output
    found = json.loads(buildah("inspect", "--type=image", name))["Docker"]["config"]
    return {**found, "Name": name}


@pytest.fixture(scope="module")
def root(buildah: Builder, image: dict[str, Any]) -> Path:
    """Return the file system of a container of the image."""
    return Path(buildah("mount", buildah("from", image["Name"])))


class Container:
    """A container of the image on the network of this machine, with secrets as mounted files."""

    def __init__(
        self,
        buildah: Builder,
        image: dict[str, Any],
        folder: Path,
        environment: dict[str, str],
        secrets: dict[str, str],
    ) -> None:
        self.buildah = buildah
        self.name = buildah("from", image["Name"])
        self.secrets = folder / f"secrets-{token_hex(4)}"
        self.secrets.mkdir()
        for name, value in secrets.items():
            (self.secrets / name).write_text(value)
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            self.port = server.getsockname()[1]
        self.environment = {**environment, "PORT": str(self.port)}
        self.image = image
        self.log = folder / f"log-{self.name}"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        """Return a command line that runs a command in the container, as the image's user."""
        variables = [f"--env={name}={value}" for name, value in self.environment.items()]
        options = ["--isolation=chroot", f"--volume={self.secrets}:/run/secrets:ro", *variables]
        return [*self.buildah.command, "run", *options, self.name, "--", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=False)

    def start(self) -> None:
        """Run the image's command in the background."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command(*self.image["Cmd"]), stdout=log, stderr=log)

    @property
    def master(self) -> int:
        """Return the process id of Gunicorn's master."""
        assert self.process
        return next(
            pid for pid in descendants(self.process.pid) if title(pid).startswith("gunicorn: master ")
        )

    def health(self) -> int:
        """Return the exit status of the image's health check."""
        kind, *words = self.image["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*words).returncode

    def wait_until_healthy(self) -> None:
        """Wait until the health check succeeds."""
        assert self.process
        deadline = time.monotonic() + 60
        while self.health() != 0:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()

    def close(self) -> None:
        """Remove the container."""
        if self.process and self.process.poll() is None:
            for pid in [*descendants(self.process.pid), self.process.pid]:
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
        self.buildah("rm", self.name)


def descendants(pid: int) -> list[int]:
    """Return the processes below a process, parents first."""
    children = [
        int(word)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for word in path.read_text().split()
    ]
    return [*children, *(below for child in children for below in descendants(child))]


def title(pid: int) -> str:
    """Return the title of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]


@pytest.fixture
def container(buildah: Builder, image: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """Return a function that creates containers with the settings of a production service."""
    given = {
        name.removeprefix("TEST_"): value for name, value in os.environ.items() if name.startswith("TEST_")
    }
    secrets = {name: given.pop(name) for name in list(given) if name.endswith("_PASSWORD")}
    del secrets["DATABASE_OWNER_PASSWORD"]
    for name in ("DATABASE_SSL_CA", "REDIS_SSL_CA"):
        secrets["ca.crt"] = Path(given[name]).read_text()
        given[name] = "/run/secrets/ca.crt"
    settings = {
        "ENVIRONMENT": "production",
        "REDIS_KEY_PREFIX": f"api:{token_hex(4)}:",
        "REDIS_TIMEOUT": "3",  # a busy test machine must not open the circuit breaker
        "WEB_CONCURRENCY": "2",
    }
    with ExitStack() as stack:

        def create(**further: str) -> Container:
            mounted = {name.lower(): value for name, value in secrets.items()} | further
            made = Container(buildah, image, tmp_path, given | settings, mounted)
            stack.callback(made.close)
            return made

        yield create


def test_the_image_serves_and_stops_gracefully(container: Callable[..., Container]) -> None:
    migration = container(
        database_owner_password=os.environ["TEST_DATABASE_OWNER_PASSWORD"], secret_key=SECRET
    )
    migrated = migration.run("python", "-m", "app.manage", "migrate")
    assert migrated.returncode == 0, migrated.stderr

    service = container(secret_key=SECRET)
    assert service.health() != 0
    service.start()
    service.wait_until_healthy()

    # Every process has the image's user, with no further groups and capabilities.
    master = service.master
    processes = [master, *descendants(master)]
    assert len(processes) == 3
    for pid in processes:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(USER)}
        assert int(status["CapEff"], 16) == 0

    token = service.run("python", "-m", "app.manage", "token", "--subject", "ann").stdout.strip()
    headers = {"Authorization": f"Bearer {token}"}
    product = {"name": "Lamp", "category": "home", "price": "1"}
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=20) as client:
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert ready.headers["x-release"] == service.image["Labels"]["org.opencontainers.image.version"]
        made = client.post("/api/v1/products", json=product, headers=headers)
        assert made.status_code == 201, made.text
        assert client.get(made.headers["location"]).json()["name"] == "Lamp"
        metrics = client.get("/metrics").text
        assert "\ncache_up 1.0\n" in metrics

    # A request in flight is finished.
    body = json.dumps(product).encode()
    with socket.create_connection(("127.0.0.1", service.port), 20) as slow:
        fields = {**headers, "Host": "api", "Content-Type": "application/json", "Content-Length": len(body)}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        slow.sendall(f"POST /api/v1/products HTTP/1.1\r\n{head}\r\n".encode() + body[:9])
        time.sleep(1)
        os.kill(master, signal.SIGTERM)
        time.sleep(1)
        slow.sendall(body[9:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 201 ")
    assert service.process
    assert service.process.wait(60) == 0

    log = [json.loads(line) for line in service.log.read_text().splitlines()]
    messages = [line["message"] for line in log]
    assert (messages.count("Started"), messages.count("Stopped")) == (2, 2)
    assert {line["status"] for line in log if line.get("method") == "POST"} == {201}
    assert SECRET not in service.log.read_text()


def test_missing_secrets_are_one_sentence(container: Callable[..., Container]) -> None:
    service = container()
    service.start()
    assert service.process
    assert service.process.wait(60) != 0
    assert "The service cannot start: SECRET_KEY is required" in service.log.read_text()


def test_the_image_has_the_release_and_nothing_else(
    buildah: Builder, image: dict[str, Any], root: Path
) -> None:
    before = listing(Path(buildah("mount", buildah("from", buildah.base))))
    added = listing(root) - before
    assert {path.split("/")[1] for path in added if not path.startswith("srv/api")} <= {
        *("passwd", "passwd-", "group", "group-", "shadow", "shadow-", "gshadow", "gshadow-"),
        *("subuid", "subuid-", "subgid", "subgid-", "api", "secrets", "log"),
    }
    own = {path.name for path in (root / "srv/api").iterdir()}
    assert own == {
        *("code", "venv", "release.json", "requirements.lock"),
        *("gunicorn.conf.py", "gunicorn_app.py", "gunicorn_worker.py", "__pycache__"),
    }
    code = {path.name.split("-")[0] for path in (root / "srv/api/code").iterdir()}
    assert code == {"app", "fastmetal_api", "pyproject.toml"}
    folders = [root / name for name in ("usr/bin", "usr/local/bin", "srv/api/venv/bin")]
    assert [tool for tool in BUILD_TOOLS if any((folder / tool).exists() for folder in folders)] == []
    assert list((root / "run/secrets").iterdir()) == []
    release = json.loads((root / "srv/api/release.json").read_text())["id"]
    assert image["Labels"]["org.opencontainers.image.version"] == release
    assert "@" not in (root / "srv/api/gunicorn.conf.py").read_text()
    assert "@" not in (root / "srv/api/gunicorn.conf.py").read_text()
    assert image["User"] == f"{USER}:{USER}"


def listing(folder: Path) -> set[str]:
    """Return the paths of all files below a folder."""
    return {os.path.relpath(Path(top) / name, folder) for top, _, names in os.walk(folder) for name in names}


def test_the_user_can_write_nothing_of_the_release(container: Callable[..., Container]) -> None:
    found = container().run(
        "find", "/srv", "/etc", "/usr", "/run/secrets", "-xdev", "-writable", "-not", "-type", "l"
    )
    assert found.stdout == ""


@pytest.mark.usefixtures("image")
def test_a_base_with_another_python_is_refused(buildah: Builder) -> None:
    arguments = ["--isolation=chroot", f"--build-arg=BASE={buildah.base}", "--build-arg=PYTHON=3.12"]
    context = ROOT / ".artifacts/image"
    command = [*buildah.command, "build", f"--file={ROOT / 'app/Containerfile'}", *arguments, str(context)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    sentence = "The base has Python 3.13, and the dependencies are for 3.12: set app_image_python to 3.13."
    assert sentence in refused.stderr
