"""The fleet under test, and the figures measured on it."""

from __future__ import annotations

import os

import pytest

from tests.conftest import measured, pytest_terminal_summary
from tests.lab import ROOT, Lab
from tests.release.fleet import Fleet

__all__ = ["fleet", "measured", "pytest_terminal_summary"]


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of long distributions."""
    config.addinivalue_line("markers", "soak: takes long; only `make soak` runs it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of `make soak`, or else all others."""
    soak = os.environ.get("SOAK") == "1"
    others = [item for item in items if bool(item.get_closest_marker("soak")) != soak]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, measured: list[str]) -> Fleet:
    """Two app hosts that serve a variant of the service, behind an edge."""
    scratch = tmp_path_factory.mktemp("release")
    inventory = ROOT / "molecule/release/inventory"
    fleet = Fleet(Lab("molecule-release"), inventory, "edge1", ("web1", "web2"), scratch, measured=measured)
    fleet.deploy()
    fleet.deploy()
    return fleet
