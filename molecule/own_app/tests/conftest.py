"""The host that serves another application, beacon."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.conftest import measured, pytest_terminal_summary
from tests.lab import ROOT, Lab
from tests.release.fleet import Fleet

__all__ = ["beacon", "measured", "pytest_terminal_summary"]


class Beacon(Fleet):
    """A host with the service of tests/own_app."""

    def build(self, fault: str = "") -> dict[str, str]:
        """Write the source tree of the next version, and return the variables that deploy it."""
        assert not fault
        self.built += 1
        version = f"1.0.{self.built}"
        tree = self.scratch / version
        shutil.copytree(ROOT / "tests/own_app", tree)
        project = (tree / "pyproject.toml").read_text()
        (tree / "pyproject.toml").write_text(project.replace('version = "1.0.0"', f'version = "{version}"'))
        return {"app_source": str(tree)}

    def traffic(self, mix: str) -> dict[str, Any]:
        """Return the load's requests: reads of every mix, as the application has no writes."""
        del mix
        requests = {
            "r": {"path": "/", "expect": '"knows_its_key":true'},
            "s": {"path": "/wait", "expect": "waited"},
        }
        return {"mix": "rrR", "always": "s", "requests": requests}


@pytest.fixture(scope="session")
def beacon(tmp_path_factory: pytest.TempPathFactory) -> Beacon:
    """Return the host with edge and application."""
    scratch = tmp_path_factory.mktemp("own_app")
    inventory = ROOT / "molecule/own_app/inventory"
    lab = Lab("molecule-own_app")
    return Beacon(lab, inventory, "beacon1", ("beacon1",), scratch, "beacon", versions=["1.0.0"])
