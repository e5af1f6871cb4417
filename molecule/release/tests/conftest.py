"""The fleet under test, and the figures measured on it."""

from __future__ import annotations

import pytest

from tests.conftest import measured, pytest_terminal_summary
from tests.lab import ROOT, Lab
from tests.release.fleet import Fleet
from tests.soak import pytest_collection_modifyitems, pytest_configure

__all__ = [
    "fleet",
    "measured",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_terminal_summary",
]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, measured: list[str]) -> Fleet:
    """Two app hosts that serve a variant of the service, behind an edge."""
    scratch = tmp_path_factory.mktemp("release")
    inventory = ROOT / "molecule/release/inventory"
    fleet = Fleet(Lab("molecule-release"), inventory, "edge1", ("web1", "web2"), scratch, measured=measured)
    fleet.deploy()
    fleet.deploy()
    return fleet
