"""The applications of tests/apps are unchanged, and their entries in an inventory are short."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from tests.apps import APPS, HERE
from tests.lab import ROOT

INVENTORY = ROOT / "molecule/apps/inventory/group_vars/all/services.yml"
# {service: the lines of its entry}
ENTRIES = {
    name: [line for line in lines.splitlines() if line.strip() and not line.strip().startswith("#")]
    for name, lines in re.findall(r"^  (\w+:)\n((?:    .*\n|\n)+)", INVENTORY.read_text(), re.MULTILINE)
}


def test_the_inventory_has_each_application() -> None:
    assert sorted(ENTRIES) == [f"{name}:" for name in APPS]
    assert sorted(yaml.safe_load(INVENTORY.read_text())["services"]) == [*APPS]


@pytest.mark.parametrize("name", APPS)
def test_an_entry_has_at_most_25_lines(name: str) -> None:
    assert 0 < len(ENTRIES[f"{name}:"]) < 25, "the name is a line, too"


@pytest.mark.parametrize("name", APPS)
def test_an_application_is_one_of_its_authors(name: str) -> None:
    """It has a Dockerfile and a compose file, and no line for this platform."""
    listed = subprocess.run(
        ["git", "ls-files", "--", HERE / name], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / line for line in listed.stdout.splitlines()]
    assert {"Dockerfile", "compose.yml", ".env.example"} <= {file.name for file in files}
    words = re.compile("fastmetal|CREDENTIALS_DIRECTORY|SHUTDOWN_FILE|PROMETHEUS_MULTIPROC", re.IGNORECASE)
    assert [file for file in files if words.search(file.read_text())] == []


@pytest.mark.parametrize("name", APPS)
def test_the_documentation_shows_the_entry(name: str) -> None:
    """It has other paths and public names."""
    blocks = re.findall(r"```yaml\n(services:\n.*?)```", (ROOT / "docs/own-app.md").read_text(), re.DOTALL)
    (shown,) = (block for block in blocks if block.startswith(f"services:\n  {name}:\n"))
    paths = {
        f"/home/me/{name}": f'"{{{{ sources }}}}/{name}"',
        "/home/me/cpython-3.13.tar.gz": '"{{ sources }}/../python.tar.gz"',
        ".example.com": ".test",
    }
    for documented, real in paths.items():
        shown = shown.replace(documented, real)
    entry = yaml.safe_load(INVENTORY.read_text())["services"][name]
    assert yaml.safe_load(shown)["services"][name] == entry
