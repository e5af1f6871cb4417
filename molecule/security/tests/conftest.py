"""The hosts of the scenario, and the host that attacks them."""

from __future__ import annotations

import subprocess

import pytest
import testinfra
import yaml
from testinfra.host import Host

from tests.attacker import LAB, Attacker
from tests.conftest import measured, pytest_terminal_summary
from tests.lab import ROOT
from tests.soak import pytest_collection_modifyitems, pytest_configure

__all__ = ["measured", "pytest_collection_modifyitems", "pytest_configure", "pytest_terminal_summary"]


@pytest.fixture(scope="session")
def attacker() -> Attacker:
    """Return the attacker."""
    return Attacker()


@pytest.fixture(scope="session")
def addresses() -> dict[str, str]:
    """Return {host: address}, the attacker's among them."""
    return {name: host["address"] for name, host in LAB.state["hosts"].items()}


@pytest.fixture(scope="session")
def private() -> dict[str, str]:
    """Return {host: IPv6 address}; hosts reach each other by these."""
    return {name: host["address6"] for name, host in LAB.state["hosts"].items()}


@pytest.fixture(scope="session")
def front() -> Host:
    """Return the edge, which runs the service."""
    return testinfra.get_host("ssh://front1", ssh_config=str(LAB.directory / "ssh_config"))


@pytest.fixture(scope="session")
def back() -> Host:
    """Return the host of data and monitoring."""
    return testinfra.get_host("ssh://back1", ssh_config=str(LAB.directory / "ssh_config"))


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    """Return the generated secrets of the environment."""
    command = ["ansible-vault", "view", str(ROOT / "inventories/lab/group_vars/all/vault.yml")]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name: value for name, value in yaml.safe_load(text).items() if isinstance(value, str)}
