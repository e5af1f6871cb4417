"""Fixtures for all tests: lab hosts, and measurements that are printed at the end."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis
import pytest

from tests.lab import LAB_GROUP_VARS, ROOT, SERVICES, Lab, play

KEEP = os.environ.get("FASTMETAL_KEEP_LAB") == "1"
EXIT_SECONDS = 60
# A busy machine is no fault of a test.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")
MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> list[str]:
    """Return the list of measurements to print when the session ends."""
    return pytestconfig.stash.setdefault(MEASURED, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the measurements."""
    for line in config.stash.get(MEASURED, []):
        terminalreporter.write_line(f"measured: {line}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Give tests of the service its servers, and the first test the time to build them."""
    items = [
        item
        for item in session.items
        if isinstance(item, pytest.Function) and "service_environment" in item.fixturenames
    ]
    for item in items:
        item.fixturenames.insert(0, "service_lab")
    if items:
        items[0].add_marker(pytest.mark.timeout(900))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print all stacks and fail if the interpreter does not exit: a thread may keep it forever."""
    # Processes of pytest-xdist wait for the main one.
    if not hasattr(config, "workerinput"):
        faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True)


@contextmanager
def started(name: str, measured: list[str], **releases: str) -> Iterator[Lab]:
    """Start a lab for the session; FASTMETAL_KEEP_LAB=1 reuses and keeps its hosts."""
    lab = Lab(name)
    lab.directory.parent.mkdir(exist_ok=True)
    with lab.directory.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.fail(f"Another test run uses the lab {name}: wait until it ends.", pytrace=False)
        if not KEEP:
            lab.down()
        measured.append(f"{len(releases)} lab host(s) answered SSH after {lab.up(**releases):.1f} s")
        yield lab
        if not KEEP:
            lab.down()


@pytest.fixture(scope="session")
def lab(measured: list[str]) -> Iterator[Lab]:
    """Return a lab with a bare host of each Debian release; tests must not change the hosts."""
    with started("pytest", measured, db12="bookworm", db13="trixie") as lab:
        yield lab


@pytest.fixture(scope="session")
def service_lab(measured: list[str]) -> Iterator[None]:
    """Run Postgres and Redis on a lab host and set TEST_*, unless TEST_* names other servers."""
    if os.environ.get("TEST_DATABASE_URL") and os.environ.get("TEST_REDIS_URL"):
        yield
        return
    with started("pytest-service", measured, data="trixie") as lab:
        start = time.monotonic()
        os.environ.update(configure_servers(lab))
        measured.append(f"Postgres and Redis on it were ready after {time.monotonic() - start:.0f} s")
        yield


def configure_servers(lab: Lab) -> dict[str, str]:
    """Apply the playbooks of the servers, and return the TEST_* variables for them."""
    if not (LAB_GROUP_VARS / "all/vault.yml").exists():
        assert play("playbooks/secrets.yml", "-e", "env=lab").status == 0
    file = lab.directory / "settings.env"
    playbooks = (f"playbooks/{name}.yml" for name in ("base", "postgres", "redis", "development"))
    run = play("-i", ROOT / "tests/inventory", *playbooks, "-e", f"__development_file={file}", "-e", SERVICES)
    assert run.status == 0, run.output
    lines = [line for line in file.read_text().splitlines() if line.startswith(("DATABASE_", "REDIS_"))]
    return {f"TEST_{name}": value for name, _, value in (line.partition("=") for line in lines)}
