"""The demo in a clone, through sudo: interrupted, complete, repeated, after a reboot, and removed.

The clone's path has a space. The caller and the host's logins have an umask, a locale and more that break
what depends on them.
All tests share one host, so they run in the order of this file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ROOT

# The user who calls sudo: an account that exists on every system and has no privileges.
USER, GROUP = "nobody", "nogroup"
SUMMARY = "The service is up:    https://"

# Keeps services from starting during the installation of packages.
GUARD = "usr/sbin/policy-rc.d"

pytestmark = pytest.mark.timeout(900)


def output(*command: str | Path, **options: Any) -> str:
    """Run a command and return its output."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, **options
    )
    return done.stdout


def eventually(condition: Callable[[], bool], what: str, seconds: float = 400) -> None:
    """Wait until a condition is true; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.05)


class Demo:
    """A clone that an unprivileged user owns, and its demo."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "fast metal"
        self.home = folder / "home"
        self.directory = self.root / ".lab/demo"
        self.id = hashlib.sha256(f"{self.root}\0demo".encode()).hexdigest()[:6]
        self.log = folder / "log"
        self.subnet = ""

    def clone(self) -> None:
        """Clone the checkout, including uncommitted changes."""
        output("git", "clone", "--quiet", "--no-hardlinks", ROOT, self.root)
        changes = output("git", "-C", ROOT, "diff", "--binary", "HEAD")
        if changes:
            output("git", "-C", self.root, "apply", input=changes)
        self.home.mkdir()
        self.home.parent.chmod(0o755)
        output("chown", "-hR", f"{USER}:{GROUP}", self.home.parent)

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment without variables of a test run, of Ansible or of another make."""
        left = re.compile("ANSIBLE_|LAB_|FASTMETAL_|VIRTUAL_ENV|MAKE|MFLAGS|PYTEST|COVERAGE|SUDO_")
        kept = {name: value for name, value in os.environ.items() if not left.match(name)}
        path = ":".join(x for x in os.environ["PATH"].split(":") if x != str(Path(sys.executable).parent))
        return {**kept, "PATH": path, **variables}

    def sudo(self) -> dict[str, str]:
        """Return the environment that sudo creates."""
        user, group = (str(getattr(self.root.stat(), name)) for name in ("st_uid", "st_gid"))
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return self.environment(PATH=path, SUDO_USER=USER, SUDO_UID=user, SUDO_GID=group)

    def start(self, *targets: str) -> subprocess.Popen[bytes]:
        """Start make in its own process group, with its output in the log."""
        with self.log.open("wb") as log:
            return subprocess.Popen(
                ["make", *targets],
                cwd=self.root,
                env=self.sudo() | {"LC_ALL": "tlh_KL.UTF-8"},
                umask=0o077,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def make(self, *targets: str) -> str:
        """Run make and return its output; it must succeed."""
        with self.start(*targets) as process:
            assert process.wait() == 0, self.log.read_text()
        return self.log.read_text()

    def interrupt(self, number: signal.Signals, condition: Callable[[], bool], what: str) -> None:
        """Start `make demo`, and send a signal to its process group once a condition is true."""
        with self.start("demo") as process:
            eventually(lambda: condition() or process.poll() is not None, what)
            assert process.poll() is None, self.log.read_text()
            os.killpg(process.pid, number)
            assert process.wait() != 0

    def harden(self) -> None:
        """Make the logins of the host hostile, as tests/hostile.sh describes."""
        with (ROOT / "tests/hostile.sh").open() as script:
            output("ssh", "-F", self.directory / "ssh_config", "demo", "sh -s root", stdin=script)

    def playbook(self, name: str) -> str:
        """Run a playbook in the clone's activated venv as the user, from another directory."""
        # The account has no home directory, and Ansible expands ~ by the account, not by $HOME.
        home = {"HOME": str(self.home), "ANSIBLE_REMOTE_TMP": str(self.home / "remote")}
        return output(
            *("bash", "-c", '. "$0/.venv/bin/activate" && exec ansible-playbook "$0/$1"', self.root, name),
            cwd="/",
            env=self.environment(LC_ALL="tlh_KL.UTF-8", **home),
            user=USER,
            group=GROUP,
            extra_groups=[],
        )

    def labctl(self, *arguments: str) -> str:
        """Run the clone's labctl."""
        return output(self.root / "roles/lab/files/labctl.py", *arguments)

    @property
    def settings(self) -> dict[str, str]:
        """Return the variables of demo.env."""
        lines = (self.root / ".lab/demo.env").read_text().splitlines()
        return dict(word.split("=", 1) for line in lines for word in shlex.split(line))

    def request(self, path: str, *options: str | Path, **changed: str) -> tuple[int, str]:
        """Send a request to the service with curl, and return the status and the body."""
        settings = self.settings | changed
        format_ = "\n%{http_code}"
        command = ["curl", "--silent", "--show-error", "--max-time", "20", "--write-out", format_]
        text = output(*command, "--cacert", settings["CA"], *options, settings["URL"] + path)
        body, _, status = text.rpartition("\n")
        return int(status), body

    def write(self, name: str, *options: str) -> tuple[int, str]:
        """Create a product, and return the status and the body."""
        product = json.dumps({"name": name, "category": "demo", "price": "19.90", "stock": 3})
        content = ("--header", "Content-Type: application/json", "--data", product)
        return self.request("/api/v1/products", *content, *options)

    def bearer(self) -> tuple[str, str]:
        """Return curl's options for the token."""
        return "--header", f"Authorization: Bearer {self.settings['TOKEN']}"

    def traces(self) -> list[str]:
        """Return what exists of the demo on this machine, including connections to its hosts."""
        if (self.directory / "state.json").exists():
            self.subnet = json.loads((self.directory / "state.json").read_text())["subnet"]
        marks = [f"fm-{self.id}", f"fm{self.id}-", f"fastmetal_{self.id}", f"fastmetal-{self.id}"]
        marks += [f"{self.directory}/"] + ([f"{self.subnet}."] if self.subnet else [])
        texts = [
            output("ip", "-oneline", "link"),
            output("ip", "-4", "route"),
            output("nft", "list", "tables"),
            output("ss", "-Htnp", "state", "established"),
            "\n".join(str(path) for path in Path("/sys/fs/cgroup").glob("**/fastmetal-*")),
            "\n".join(str(path) for path in (self.root / ".lab").glob("demo*")),
        ]
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                texts.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                texts += [(process / name).read_text() for name in ("mounts", "cgroup")]
        lines = "\n".join(texts).splitlines()
        return [x for x in lines if f"{self.root}/.lab/demo" in x or any(mark in x for mark in marks)]


def changes(text: str) -> list[int]:
    """Return the number of changed tasks for each host and recap."""
    return [int(count) for count in re.findall(r"^\S+ +: ok=.* changed=(\d+)", text, re.MULTILINE)]


def summary(text: str) -> str:
    """Return the summary at the end of the demo's output."""
    assert SUMMARY in text
    return text[text.index(SUMMARY) :]


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """Return a fresh clone of the checkout, and remove it with its demo after the tests."""
    folder = Path(tempfile.mkdtemp(prefix="fastmetal-demo-"))
    demo = Demo(folder)
    try:
        demo.clone()
        yield demo
    finally:
        if demo.root.exists():
            demo.labctl("down", "demo")
        shutil.rmtree(folder)


def test_make_demo_continues_after_interruptions(demo: Demo, measured: list[str]) -> None:
    start = time.monotonic()
    upper = demo.directory / "hosts/demo/upper"
    journal, status, guard = upper / "var/lib/dpkg/updates", upper / "var/lib/dpkg/status", upper / GUARD

    def dpkg_installs(what: str) -> Callable[[], bool]:
        """Return a condition: dpkg runs on the host and has installed files of a package."""
        return lambda: (upper / what).exists() and journal.exists() and any(journal.iterdir())

    demo.interrupt(signal.SIGINT, upper.parent.exists, "the start of a host")
    demo.interrupt(signal.SIGINT, dpkg_installs("usr/share/doc/chrony"), "the base packages")
    demo.harden()
    # The worst case: dpkg runs while the playbook is killed and the host loses power.
    demo.interrupt(signal.SIGKILL, dpkg_installs("usr/lib/postgresql"), "the installation of PostgreSQL")
    demo.labctl("kill", "demo", "demo")
    assert any(journal.iterdir())
    assert guard.exists()
    demo.interrupt(signal.SIGINT, (upper / "srv/api/releases").exists, "the installation of the release")
    begun = time.monotonic()
    text = demo.make("demo")
    now = time.monotonic()
    assert SUMMARY in text
    measured.append(
        f"make demo, interrupted four times: {now - start:.0f} s, its last run {now - begun:.0f} s"
    )
    assert not guard.exists()
    assert set(re.findall(r"^Status: (.*)", status.read_text(), re.MULTILINE)) == {"install ok installed"}


def test_demo_env_has_the_url_and_a_valid_token(demo: Demo) -> None:
    written = demo.root / ".lab/demo.env"
    assert written.stat().st_mode & 0o777 == 0o600
    assert set(demo.settings) == {"URL", "CA", "TOKEN"}
    assert demo.request("/health/ready")[0] == 200
    assert demo.write("Lamp")[0] == 401
    status, body = demo.write("Lamp", *demo.bearer())
    assert status == 201
    product = json.loads(body)
    assert demo.request(f"/api/v1/products/{product['id']}") == (200, body)


def test_the_demo_requires_tls_with_its_own_ca(demo: Demo, tmp_path: Path) -> None:
    plain = demo.settings["URL"].replace("https://", "http://")
    status, headers = demo.request("/health/ready", "--head", URL=plain)
    assert status == 301
    assert f"location: {demo.settings['URL']}/health/ready" in headers.lower()
    other = tmp_path / "other.crt"
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Another")
    output(*make, "-keyout", tmp_path / "other.key", "-out", other, stderr=subprocess.DEVNULL)
    with pytest.raises(subprocess.CalledProcessError) as failure:
        demo.request("/health/ready", CA=str(other))
    assert failure.value.returncode == 60  # curl: the peer's certificate cannot be verified


def test_a_second_make_demo_changes_nothing(demo: Demo, measured: list[str]) -> None:
    before, text = demo.settings, (demo.root / ".lab/demo.txt").read_text()
    start = time.monotonic()
    again = demo.make("demo")
    measured.append(f"make demo again: {time.monotonic() - start:.0f} s")
    assert set(changes(again)) == {0}
    assert again.endswith(text)
    assert demo.settings == before


def test_site_yml_works_without_sudo(demo: Demo, measured: list[str]) -> None:
    owner = demo.root.stat().st_uid
    files = [*demo.root.glob("*"), *demo.directory.glob("*"), *demo.root.glob(".lab/*")]
    files += [*demo.root.glob("inventories/lab/**/*"), *demo.root.glob(".venv/bin/*")]
    hosts = demo.directory / "hosts"
    assert [str(path) for path in files if path.lstat().st_uid != owner and path != hosts] == []
    start = time.monotonic()
    text = demo.playbook("site.yml")
    measured.append(f"site.yml with nothing to change: {time.monotonic() - start:.0f} s")
    assert changes(text) == [0]


def test_make_demo_recovers_from_a_reboot_of_the_machine(demo: Demo, measured: list[str]) -> None:
    product = json.loads(demo.write("Kept", *demo.bearer())[1])
    before, subnet = demo.settings, json.loads((demo.directory / "state.json").read_text())["subnet"]
    demo.labctl("kill", "demo", "demo")
    output("ip", "link", "delete", f"fm-{demo.id}")
    output("ip", "route", "delete", "blackhole", f"{subnet}.0/24", "metric", "9999")
    output("nft", "delete", "table", "inet", f"fastmetal_{demo.id}")
    start = time.monotonic()
    text = demo.make("demo")
    measured.append(f"make demo after a reboot of the machine: {time.monotonic() - start:.0f} s")
    assert SUMMARY in text
    assert demo.settings == before
    status, body = demo.request(f"/api/v1/products/{product['id']}")
    assert (status, json.loads(body)) == (200, product)


def test_demo_down_restores_the_machine(demo: Demo) -> None:
    assert len(demo.traces()) > 10
    original = Path("/run/fastmetal-lab/ip_forward").read_text()
    demo.make("demo-down")
    assert demo.traces() == []
    if not list(Path("/sys/class/net").glob("fm-*")):  # other labs need it
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == original
    demo.make("demo-down")
    assert demo.traces() == []


def test_demo_down_removes_a_partial_demo(demo: Demo) -> None:
    demo.interrupt(signal.SIGKILL, lambda: bool(demo.traces()), "the start of a host")
    demo.make("demo-down")
    assert demo.traces() == []
