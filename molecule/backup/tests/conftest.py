"""Two database hosts: one keeps its backups itself, a backup host pulls those of the other."""

from __future__ import annotations

import pytest

from tests.backups import Data
from tests.conftest import measured, pytest_terminal_summary
from tests.lab import ROOT, Lab

__all__ = ["debian12", "debian13", "measured", "pytest_terminal_summary"]

LAB = Lab("molecule-backup")
INVENTORY = ROOT / "molecule/backup/inventory"


@pytest.fixture(scope="session")
def debian12(measured: list[str]) -> Data:
    """Return the database on Debian 12, with two repositories of its own."""
    return Data(LAB, INVENTORY, "debian12", measured)


@pytest.fixture(scope="session")
def debian13(measured: list[str]) -> Data:
    """Return the database on Debian 13, with a backup host."""
    return Data(LAB, INVENTORY, "debian13", measured, backup_host="store13")


@pytest.fixture(params=["debian12", "debian13"])
def data(request: pytest.FixtureRequest) -> Data:
    """Return each of them."""
    found: Data = request.getfixturevalue(request.param)
    return found
