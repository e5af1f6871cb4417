"""Hosts and variables for the verification of a scenario, which Molecule names in the environment."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SCENARIO = os.environ.get("MOLECULE_SCENARIO_NAME", "default")
LAB = ROOT / ".lab" / f"molecule-{SCENARIO}"
INVENTORY = ROOT / "molecule" / os.environ.get("MOLECULE_INVENTORY", "shared") / "inventory"


def pytest_configure(config: pytest.Config) -> None:
    """Point testinfra at the hosts of the scenario's lab."""
    state = LAB / "state.json"
    if not state.exists():
        raise pytest.UsageError(f"lab {LAB.name} is down: run `molecule converge -s {SCENARIO}` first")
    config.option.hosts = ",".join(f"ssh://{name}" for name in json.loads(state.read_text())["hosts"])
    # One connection per host for all tests; its socket's path must be short, whatever the checkout's is.
    sockets = tempfile.TemporaryDirectory(prefix="fastmetal-")
    config.add_cleanup(sockets.cleanup)
    ssh_config = LAB / "ssh_config.tests"
    multiplexing = f"  ControlMaster auto\n  ControlPersist 5\n  ControlPath {sockets.name}/%C\n"
    ssh_config.write_text((LAB / "ssh_config").read_text() + multiplexing)
    config.option.ssh_config = str(ssh_config)


@pytest.fixture(scope="session")
def all_variables() -> dict[str, dict[str, Any]]:
    """Return {host: {variable: value}}, resolved by Ansible itself, once."""
    names = sorted(
        name
        for path in ROOT.glob("roles/*/meta/argument_specs.yml")
        for name in yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
        # The lab's are no host's, and the default of app_source is known inside the role only.
        if not name.startswith("lab_") and name != "app_source"
    )
    arguments = json.dumps({"variable_names": ["group_names", *names], "variables_directory": str(LAB)})
    play = ROOT / "molecule/shared/variables.yml"
    subprocess.run(
        ["ansible-playbook", "-i", INVENTORY, play, "-e", arguments],
        check=True,
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
    )
    hosts = json.loads((LAB / "state.json").read_text())["hosts"]
    return {name: json.loads((LAB / f"{name}.json").read_text()) for name in hosts}


@pytest.fixture
def variables(host: Any, all_variables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the variables of the host under test."""
    return all_variables[
        host.backend.host.name if hasattr(host.backend.host, "name") else host.backend.hostname
    ]
