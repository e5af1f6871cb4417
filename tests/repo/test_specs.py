"""Roles, their specs, the documents and the dependencies are consistent."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.lab import ROOT

ROLES = sorted(path.name for path in ROOT.glob("roles/*") if path.is_dir())
each_role = pytest.mark.parametrize("role", ROLES)


def spec(role: str) -> dict[str, Any]:
    """Return a role's options by name."""
    content = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text())
    options: dict[str, Any] = content["argument_specs"]["main"]["options"]
    return options


def defaults(role: str) -> dict[str, Any]:
    """Return a role's defaults by name; of a key of a service, what holds without the key."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "roles" / role / "defaults/main.yml").read_text())
    return {name: without_key(name, value) for name, value in content.items()}


def without_key(name: str, value: Any) -> Any:
    """Return what `{{ app_service.KEY | default(VALUE) }}` holds without the key."""
    key = name.removeprefix("app_")
    found = re.fullmatch(rf"{{{{ app_service\.{key} \| default\((.*)\) }}}}", str(value))
    if not found:
        return value
    literal = re.fullmatch(r"'.*'|[\[{{].*|\d+|true|false", found[1])
    return yaml.safe_load(found[1]) if literal else f"{{{{ {found[1]} }}}}"


def own_files(*patterns: str) -> list[Path]:
    """Return the files of the tree that Git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


@each_role
def test_defaults_match_the_spec(role: str) -> None:
    specified = {name: option["default"] for name, option in spec(role).items() if "default" in option}
    assert defaults(role) == specified


@each_role
def test_every_option_is_described_and_typed(role: str) -> None:
    options = dict(spec(role))
    while options:
        name, option = options.popitem()
        assert option.get("type"), name
        assert str(option.get("description", "")).strip(), name
        assert not (option.get("required") and "default" in option), name
        options |= {f"{name}.{inner}": value for inner, value in option.get("options", {}).items()}


@each_role
def test_every_default_has_a_comment(role: str) -> None:
    lines = (ROOT / "roles" / role / "defaults/main.yml").read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if re.match(r"\w+:", line):
            assert before.startswith("# "), f"{role}: {line}"


@each_role
def test_public_variables_have_the_roles_prefix(role: str) -> None:
    shared = (
        *("secret_", "environment_name", "services", "release_notify", "private_address", "public_name"),
        *("rotation_", "what"),
    )
    for name in [*spec(role), *defaults(role)]:
        assert name.startswith(f"{role}_") or (role == "preflight" and name.startswith(shared)), name


@each_role
def test_task_files_are_short_and_read_no_inventory(role: str) -> None:
    for path in own_files(f"roles/{role}/tasks/*", f"roles/{role}/handlers/*", f"roles/{role}/templates/*"):
        text = path.read_text()
        if path.parent.name != "templates":
            assert len(text.splitlines()) <= 150, path
        assert not re.search(r"\bgroups(?:\[|\.\w)|\bhostvars\b|\bgroup_names\b", text), path


@pytest.mark.parametrize("playbook", sorted(ROOT.glob("playbooks/*.yml")), ids=lambda path: path.name)
def test_roles_come_after_preflight(playbook: Path) -> None:
    """Preflight must stop all hosts, before any changes, if one of them is invalid."""
    for play in yaml.safe_load(playbook.read_text()):
        if play.get("hosts", "localhost") == "localhost" or "roles" not in play:
            continue
        assert play["pre_tasks"][0]["ansible.builtin.include_role"] == {"name": "preflight"}, play["name"]
        assert play["any_errors_fatal"] is True, play["name"]


def test_reference_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/reference.py", "--check"], check=False)
    assert done.returncode == 0, "run docs/reference.py"


def test_required_collections_are_used_and_installed() -> None:
    listed = {
        entry["name"]: SpecifierSet(entry["version"])
        for entry in yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
    }
    text = "\n".join(
        path.read_text() for path in own_files("roles/*.yml", "playbooks/*.yml", "molecule/*.yml")
    )
    used = set(re.findall(r"\b((?:community|ansible)\.[a-z_]+)\.[a-z_]+:", text)) - {"ansible.builtin"}
    assert used == set(listed)
    collections = Path(str(importlib.metadata.distribution("ansible").locate_file("ansible_collections")))
    for name, versions in listed.items():
        manifest = json.loads((collections / name.replace(".", "/") / "MANIFEST.json").read_text())
        assert manifest["collection_info"]["version"] in versions, name


def test_every_secret_is_generated_and_declared() -> None:
    shared = "\n".join(path.read_text() for path in own_files("group_vars/*"))
    used = set(re.findall(r"\bsecret_\w+", shared))
    playbook = (ROOT / "playbooks/secrets.yml").read_text()
    assert set(re.findall(r"^\s+(secret_\w+):", playbook, re.MULTILINE)) == used
    declared = spec("preflight")
    assert {name for name in declared if name.startswith("secret_")} == used
    assert all(declared[name].get("no_log") for name in used)


@each_role
def test_no_description_is_a_template(role: str) -> None:
    """Ansible resolves the whole specification with a task's variables before it validates arguments."""
    lines = (ROOT / "roles" / role / "meta/argument_specs.yml").read_text().splitlines()
    assert [line for line in lines if "{{" in line and not line.strip().startswith("default:")] == []


@each_role
def test_lists_keep_their_order(role: str) -> None:
    """The filter `union` returns another order in each run, so a file made from it would change each time."""
    for path in own_files(f"roles/{role}/*.yml", f"roles/{role}/*.j2"):
        assert not re.search(r"\|\s*union\(", path.read_text()), f"{path}: use (a + b) | unique"


def test_no_file_names_a_package_registry() -> None:
    registries = re.compile(
        r"\b(?:pypi\.(?:org|python)|files\.pythonhosted\.org|test\.pypi|registry\.npmjs|galaxy\.ansible\.com/api"
        r"|deb\.debian\.org|archive\.ubuntu\.com|proxy\.golang\.org)|--(?:extra-)?index-url\b(?!.*\$)"
    )
    for path in own_files():
        found = registries.search(path.read_bytes().decode(errors="replace"))
        assert not found, f"{path.relative_to(ROOT)}: {found}"
