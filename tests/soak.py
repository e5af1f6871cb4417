"""The marker `soak` of a scenario: tests of long distributions and scans, which only `make soak` runs."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "soak: takes long; only `make soak` runs it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of `make soak`, or else all others."""
    soak = os.environ.get("SOAK") == "1"
    others = [item for item in items if bool(item.get_closest_marker("soak")) != soak]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
