"""Run Ansible modules in the test's own process, and put fake commands on the PATH."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible.plugins.loader import init_plugin_loader
from ansible.utils.collection_loader import AnsibleCollectionConfig

from tests.instance import Instance, Start

# Before the first import of ansible_collections: without Ansible's importer, no filter would be found later.
if not AnsibleCollectionConfig.collection_finder:
    init_plugin_loader()

RunModule = Callable[..., dict[str, Any]]
FakeCommand = Callable[[str, str], None]


@pytest.fixture
def run_module(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> RunModule:
    """A function that runs a module with arguments and returns its result."""

    def run(module: ModuleType, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        capfd.readouterr()
        internal = {"_ansible_check_mode": check, "_ansible_remote_tmp": str(tmp_path / "ansible-tmp")}
        with patch_module_args({**arguments, **internal}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capfd.readouterr().out)
        return result

    return run


@pytest.fixture
def fake_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCommand:
    """A function that replaces a command by a shell script."""
    folder = tmp_path / "fake-commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def fake(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return fake


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts Gunicorn with an app; `probe` names the instance that has to probe itself."""
    started: list[Instance] = []

    def start(app: str, probe: str = "", **settings: Any) -> Instance:
        if probe:
            (tmp_path / "startup-probe").write_text(probe)
        started.append(Instance(tmp_path, app, **settings))
        return started[-1]

    yield start
    for instance in started:
        instance.process.terminate()
        instance.process.wait(30)
        instance.notify.close()
