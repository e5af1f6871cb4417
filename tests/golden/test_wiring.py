"""The wiring gives each role of each host what the golden files say, and stays easy to follow."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache

import pytest
import yaml

from tests.golden.__main__ import GOLDEN, INVENTORIES, ROOT
from tests.lab import SHARED_GROUP_VARS, clean_environment

FILES = {path.stem: path.read_text() for path in sorted(SHARED_GROUP_VARS.glob("*.yml"))}
# {variable: its value as written}
VARIABLES = {
    name: yaml.safe_dump(value) for text in FILES.values() for name, value in yaml.safe_load(text).items()
}
GROUND = {name for file in ("main", "topology") for name in yaml.safe_load(FILES[file])}


@pytest.mark.parametrize("name", INVENTORIES)
def test_results_are_the_golden_ones(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden", name],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    golden = (GOLDEN / f"{name}.yml").read_text()
    assert done.stdout == golden, "review the difference, then run python -m tests.golden --update"


def used_by(name: str) -> set[str]:
    """Return the shared variables that a variable's value names."""
    return set(re.findall(r"\w+", VARIABLES[name])) & VARIABLES.keys() - {name}


@cache
def chain(name: str) -> tuple[str, ...]:
    """Return the longest chain from a variable down to main.yml or topology.yml."""
    if name in GROUND:
        return (name,)
    return (name, *max((chain(used) for used in used_by(name)), key=len, default=()))


def test_chains_are_short() -> None:
    """A reader follows a variable through at most four others to the ground."""
    assert [found for found in map(chain, VARIABLES) if len(found) > 5] == []


def test_ports_are_written_once() -> None:
    ports = yaml.safe_load(FILES["topology"])["__ports"].values()
    written = re.compile(rf"\b({'|'.join(str(port) for port in ports)})\b")
    assert [file for file, text in FILES.items() if file != "topology" and written.search(text)] == []


def test_private_variables_are_used() -> None:
    readers = [*ROOT.glob("playbooks/*.yml"), *ROOT.glob("plugins/filter/*.py")]
    text = "\n".join([*VARIABLES.values(), *(path.read_text() for path in readers)])
    unused = {name for name in VARIABLES if name.startswith("__") and not re.search(rf"\b{name}\b", text)}
    assert unused == set()


def test_public_variables_are_declared() -> None:
    specs = (yaml.safe_load(path.read_text()) for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
    declared = {name for spec in specs for name in spec["argument_specs"]["main"]["options"]}
    assert {name for name in VARIABLES if not name.startswith("__")} - declared == set()
