"""The GitHub workflow runs every part of `make test` and every scenario, with pinned actions."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.lab import ROOT

WORKFLOW = ROOT / ".github/workflows/ci.yml"


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    """Return the workflow's jobs by name."""
    content: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    return content


def test_every_part_and_scenario_is_in_the_matrix(jobs: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    parts = {"check", *re.findall(r"^(test-(?:app|demo|lab|preflight)):", makefile, re.MULTILINE)}
    scenarios = {f"scenario-{path.parent.name}" for path in ROOT.glob("molecule/*/molecule.yml")}
    assert set(jobs["part"]["strategy"]["matrix"]["part"]) == parts | scenarios


def test_make_test_runs_every_scenario_with_tests_of_its_own() -> None:
    parts = re.findall(r"^PARTS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
    scenarios = {f"scenario-{path.parent.name}" for path in ROOT.glob("molecule/*/tests")} - {
        "scenario-shared"
    }
    assert scenarios <= set(re.split(r"[ +]", parts))
    assert {"scenario-default", "scenario-split"} <= set(re.split(r"[ +]", parts))


def test_the_workflow_detects_a_missing_scenario(jobs: dict[str, Any], tmp_path: Any) -> None:
    script = jobs["complete"]["steps"][-1]["run"]
    for file in (".github/workflows/ci.yml", "molecule/default/molecule.yml", "molecule/split/molecule.yml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text())
    command = ["bash", "-euo", "pipefail", "-c", script]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    (tmp_path / "molecule/new").mkdir()
    (tmp_path / "molecule/new/molecule.yml").touch()
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "scenario-new is missing" in refused.stdout


def test_actions_are_pinned_by_hash() -> None:
    used = re.findall(r"uses: (\S+)", WORKFLOW.read_text())
    assert used
    assert [action for action in used if not re.search(r"@[0-9a-f]{40}$", action)] == []
