"""Run Ansible modules in the test's own process, and put fake commands on the PATH."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible.plugins.loader import init_plugin_loader
from ansible.utils.collection_loader import AnsibleCollectionConfig

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
