"""A standalone CPython beside the host's own: newer on Debian 12, older on Debian 13."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import started
from tests.lab import ROOT, Lab, Run, make_environment, play
from tests.standalone_python import standalone_python

pytestmark = pytest.mark.timeout(300)

# {host: (its release, the release that lends its Python)}
HOSTS = {"old": ("bookworm", "trixie"), "new": ("trixie", "bookworm")}
CODE = "import json, platform, ssl, sys; print(json.dumps([platform.python_version(), sys.prefix]))"
PLAY = {
    "hosts": "all",
    "gather_facts": False,
    "tasks": [
        {
            "name": "Install the Python",
            "fastmetal.metal.release_python": {
                "python": "{{ wanted }}",
                "archive": "{{ archive }}",
                "checksum": "{{ checksum }}",
                "architecture": "{{ lookup('pipe', 'uname -m') }}",
                "cache": "{{ cache }}",
                "directory": "/srv/shop/pythons",
            },
            "register": "installed",
        },
        {
            "name": "Create a virtual environment",
            "ansible.builtin.command": {
                "cmd": "{{ installed.interpreter }} -m venv --without-pip --symlinks /srv/shop/venv",
                "creates": "/srv/shop/venv",
            },
        },
    ],
}


@pytest.fixture(scope="module")
def lab(measured: list[str]) -> Iterator[Lab]:
    """Return a lab with a host of each Debian release."""
    with started("pytest-python", measured, **{name: own for name, (own, _) in HOSTS.items()}) as lab:
        yield lab


@pytest.fixture(scope="module")
def environment(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an inventory in which each host gets the Python of the other one's release."""
    folder = tmp_path_factory.mktemp("python")
    hosts: dict[str, dict[str, Any]] = {}
    for name, (_, lender) in HOSTS.items():
        python = standalone_python(lender)
        archive = {
            "archive": str(python.archive),
            "checksum": python.checksum,
            "cache": str(folder / "cache"),
        }
        hosts[name] = {"wanted": python.version.rpartition(".")[0], **archive}
    (folder / "play.yml").write_text(yaml.safe_dump([PLAY]))
    return make_environment(folder / "env", hosts, lab_name=lab.name)


def run(environment: Path, *words: str) -> Run:
    """Run the playbook."""
    done = play("-i", environment, environment.parent / "play.yml", *words, root=ROOT)
    assert done.status == 0, done.output
    return done


def test_both_directions(lab: Lab, environment: Path) -> None:
    assert run(environment).changed == {"old": 2, "new": 2}
    for name, (_, lender) in HOSTS.items():
        found = json.loads(lab.ssh(name, f"/srv/shop/venv/bin/python -c '{CODE}'"))
        assert found == [standalone_python(lender).version, "/srv/shop/venv"]
    # The host's own stays what it was.
    assert lab.ssh("old", "python3 --version").startswith("Python 3.11.")
    assert lab.ssh("new", "python3 --version").startswith("Python 3.13.")


def test_a_second_run_changes_nothing_and_copies_nothing(lab: Lab, environment: Path) -> None:
    assert run(environment).changed == {"old": 0, "new": 0}
    for name in HOSTS:
        assert "python.tar.gz" not in lab.ssh(name, "ls -A /srv/shop")


def test_an_interpreter_that_does_not_run_there_is_refused(lab: Lab, environment: Path) -> None:
    """As if its C library were newer than the host's."""
    lab.ssh("old", "rm -r /srv/shop/pythons/*")
    lab.ssh("old", "mkdir -p /srv/shop/pythons && mount -t tmpfs -o noexec tmpfs /srv/shop/pythons")
    done = play("-i", environment, environment.parent / "play.yml", "--limit", "old", root=ROOT)
    assert done.status
    assert "Permission denied" in done.sentences[-1]
    assert lab.ssh("old", "ls -A /srv/shop/pythons") == ""
