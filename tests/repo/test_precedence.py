"""Role default < shared group_vars/all < environment < host < -e, in every play of every playbook.

A copy of the tree gets a variable for each level, set at that level and at every lower one. The playbooks run
without their tasks, and a callback prints the values that each play sees on each host.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import ROOT, play

LEVELS = ["role default", "shared", "environment", "host", "-e"]
ENVIRONMENTS = sorted(path.parent.name for path in ROOT.glob("inventories/*/hosts.yml"))


def plays_of(playbook: Path) -> list[dict[str, Any]]:
    """Return the plays of a playbook, including imported ones."""
    plays: list[dict[str, Any]] = []
    for entry in yaml.safe_load(playbook.read_text()):
        imported = entry.get("ansible.builtin.import_playbook")
        plays += plays_of(playbook.parent / imported) if imported else [entry]
    return plays


PLAYBOOKS = [
    "site.yml",
    *(
        f"playbooks/{path.name}"
        for path in sorted(ROOT.glob("playbooks/*.yml"))
        if any(entry["hosts"] != "localhost" for entry in plays_of(path))
    ),
]


FLEET: dict[str, Any] = {"all": {"children": {"service_hosts": {"children": {"app": {}}}}}}


def probes(level: str) -> str:
    """Return YAML that sets the variables of a level and of all higher ones, to detect a lost level."""
    return "".join(f'\nprobe_{index}: "{level}"' for index in range(LEVELS.index(level), len(LEVELS))) + "\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree in which every level sets its probe variables."""
    tree = tmp_path_factory.mktemp("tree") / "checkout"
    skipped = shutil.ignore_patterns("vault.yml", ".vault-password", "__pycache__")
    for name in ("ansible.cfg", "site.yml"):
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in ("playbooks", "group_vars", "inventories", "roles"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=skipped)
    for path in tree.glob("roles/*/defaults/main.yml"):
        path.write_text(path.read_text() + probes("role default"))
    for folder in sorted(tree.rglob("group_vars")):
        where = folder.parent.relative_to(tree)
        level = {Path(): "shared", Path("inventories"): "environment"}.get(
            where.parent if where.parts[1:] else where
        )
        # An unexpected folder sets all levels, so a test fails if it takes effect.
        text = probes(level) if level else probes("role default").replace("role default", str(where))
        (folder / "all").mkdir(exist_ok=True)
        (folder / "all/probes.yml").write_text(text)
    for environment in ENVIRONMENTS:
        # A task of fleet.yml makes this group.
        (tree / "inventories" / environment / "fleet.yml").write_text(yaml.safe_dump(FLEET))
        inventory = yaml.safe_load((tree / "inventories" / environment / "hosts.yml").read_text())
        for host in hosts_of(inventory["all"]):
            path = tree / "inventories" / environment / "host_vars" / host / "probes.yml"
            path.parent.mkdir(parents=True)
            path.write_text(probes("host"))
    return tree


def hosts_of(group: dict[str, Any]) -> set[str]:
    """Return the hosts of a group of a YAML inventory, including those of its children."""
    children = (group.get("children") or {}).values()
    return set(group.get("hosts") or {}).union(*(hosts_of(child) for child in children if child))


CASES = [("production", playbook) for playbook in PLAYBOOKS]
CASES += [(environment, "site.yml") for environment in ENVIRONMENTS if environment != "production"]


@pytest.mark.parametrize(("environment", "playbook"), CASES)
def test_precedence(tree: Path, environment: str, playbook: str) -> None:
    run = play(
        *("-i", f"inventories/{environment}", playbook, "-e", 'probe_4="-e"'),
        *("--tags", "no-task-has-this", "--skip-tags", "always"),
        root=tree,
        ANSIBLE_CALLBACK_PLUGINS=str(Path(__file__).with_name("callback_plugins")),
        ANSIBLE_CALLBACKS_ENABLED="probe_variables",
    )
    assert run.status == 0, run.output
    seen = [json.loads(line[6:]) for line in run.output.splitlines() if line.startswith("PROBE ")]
    assert {line["play"] for line in seen} == {entry["name"] for entry in plays_of(ROOT / playbook)}
    for line in seen:
        levels = LEVELS if line["roles"] else LEVELS[1:]
        expected = {f"probe_{LEVELS.index(level)}": level for level in levels}
        assert line["probes"] == expected, f"{line['play']} on {line['host']}"


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_plays_set_no_public_variables(playbook: str) -> None:
    """A play's `vars` would override the operator's variables of an environment or a host."""
    for entry in plays_of(ROOT / playbook):
        assert [name for name in entry.get("vars", {}) if not name.startswith(("__", "ansible_"))] == [], (
            entry["name"]
        )


INVENTORIES = [
    path.parent
    for parent in ("inventories/*", "molecule/*/inventory", "tests/inventory")
    for path in sorted(ROOT.glob(f"{parent}/hosts.yml"))
]


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_environment_links_the_shared_group_vars(inventory: Path) -> None:
    shared = inventory / "group_vars/all/00-shared"
    assert shared.is_symlink()
    assert not shared.readlink().is_absolute()
    assert shared.samefile(ROOT / "group_vars/all")
