"""A misspelt inventory, group or limit ends a run, and `-e name=value` sets flags and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.callback.command_line import skip_refusal
from plugins.plugin_utils.specs import load_specs
from tests.lab import ROOT, Run, play


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Return an inventory with one host in a misspelt group."""
    file = tmp_path / "hosts.yml"
    groups = {"rediss": {"hosts": {"cache1": None}}, "postgres": None}
    file.write_text(yaml.safe_dump({"all": {"hosts": {"web1": None}, "children": groups}}))
    return file


def run(*arguments: str | Path) -> Run:
    """Run a playbook without its tasks."""
    return play(*arguments, "--skip-tags", "untagged", FASTMETAL_VAULT_PASSWORD="x")


def assert_refused(done: Run, sentence: str) -> None:
    """Assert that a run ended with one sentence."""
    assert done.status == 1, done.output
    assert [line for line in done.output.splitlines() if line.startswith("[ERROR]")] == [
        f"[ERROR]: {sentence}"
    ]


def test_an_inventory_that_does_not_exist() -> None:
    path = ROOT / "inventories/prodction"
    done = run("-i", "inventories/prodction", "site.yml")
    assert_refused(done, f"There is no inventory {path}. Did you mean production?")
    assert "PLAY [" not in done.output


def test_one_of_two_inventories_does_not_exist(inventory: Path) -> None:
    wrong = inventory.with_name("host.yml")
    done = run("-i", inventory, "-i", wrong, "playbooks/status.yml")
    assert_refused(done, f"There is no inventory {wrong}. Did you mean hosts.yml?")


def test_a_misspelt_group(inventory: Path) -> None:
    done = run("-i", inventory, "playbooks/redis.yml")
    assert_refused(done, "redis.yml did nothing: no host of the inventory is in redis. Did you mean rediss?")


def test_a_group_without_hosts(inventory: Path) -> None:
    done = run("-i", inventory, "playbooks/postgres.yml")
    assert_refused(done, "postgres.yml did nothing: no host of the inventory is in postgres.")


def test_a_limit_without_hosts_of_the_playbook(inventory: Path) -> None:
    done = run("-i", inventory, "playbooks/postgres.yml", "--limit", "web1")
    assert_refused(done, "postgres.yml did nothing: no host of --limit web1 is in postgres.")


def test_a_misspelt_limit(inventory: Path) -> None:
    done = run("-i", inventory, "playbooks/status.yml", "--limit", "cache1,!web2")
    assert_refused(done, "--limit has web2, which is no host or group. Did you mean web1?")


def test_an_inventory_without_hosts(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {}\n")
    done = run("-i", tmp_path / "hosts.yml", "site.yml")
    assert_refused(done, "site.yml did nothing: the inventory has no hosts.")


def test_a_wrong_vault_password(tmp_path: Path) -> None:
    """The password's file is named, not only that something cannot be decrypted."""
    folder = tmp_path / "group_vars/all"
    folder.mkdir(parents=True)
    (folder / "vault.yml").symlink_to(ROOT / "molecule/shared/inventory/group_vars/all/vault.yml")
    (tmp_path / "hosts.yml").write_text("all: {hosts: {web1: }}\n")
    done = run("-i", tmp_path, "site.yml")
    assert_refused(
        done, "The password in $FASTMETAL_VAULT_PASSWORD does not decrypt the secrets: correct it."
    )


def test_extra_variables_have_the_types_of_the_specs(tmp_path: Path, inventory: Path) -> None:
    """Ansible passes the value of `-e name=value` as a string."""
    options = {name: option["type"] for role in load_specs().values() for name, option in role.items()}
    given: dict[str, tuple[str, Any]] = {"bool": ("no", False), "int": ("7", 7), "float": ("99.5", 99.5)}
    variables = {name: given[kind] for name, kind in options.items() if kind in given}
    texts = {"app_version": "1.10", "own_variable": "7", "redis_port": "many"}
    words = [f"{name}={text}" for name, (text, _) in variables.items()]
    words += [f"{name}={text}" for name, text in texts.items()]
    names = [*variables, *texts]
    expression = "{{ " + f"dict({names} | zip({names} | map('extract', vars)))" + " | to_json }}"
    task = {"ansible.builtin.copy": {"dest": str(tmp_path / "seen.json"), "content": expression}}
    play_ = {"hosts": "web1", "connection": "local", "gather_facts": False, "tasks": [task]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play_]))
    interpreter = "ansible_python_interpreter={{ ansible_playbook_python }}"
    done = play(
        "-i",
        inventory,
        tmp_path / "play.yml",
        "-e",
        " ".join(words),
        "-e",
        interpreter,
        FASTMETAL_VAULT_PASSWORD="x",
    )
    assert done.status == 0, done.output
    assert (
        json.loads((tmp_path / "seen.json").read_text())
        == {name: value for name, (_, value) in variables.items()} | texts
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tags", "redis"], "--tags redis: the tasks of site.yml have no tags"),
        (["--start-at-task", "Install"], "--start-at-task: the tasks of site.yml need those before them"),
    ],
)
def test_a_part_of_a_playbook(options: list[str], says: str) -> None:
    advice = "run the playbook of one function instead, such as playbooks/edge.yml."
    assert_refused(play("site.yml", *options), f"{says}; {advice}")


def test_playbooks_of_the_operator_have_tags(tmp_path: Path) -> None:
    assert not skip_refusal(tmp_path / "mine.yml", ["mine"], "Install")
    assert not skip_refusal(ROOT / "site.yml", ["all"], None)
    assert skip_refusal(ROOT / "playbooks/edge.yml", ["mine"], None)
