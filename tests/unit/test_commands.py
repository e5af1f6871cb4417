"""Commands of actions and modules on a host whose login prints and sets inconvenient things."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from plugins.plugin_utils.commands import run_command
from plugins.shell.clean import ShellModule

LOGIN = """
echo Authorised users only.
echo Your password expires. >&2
umask 077
export LC_ALL=tlh_KL.UTF-8 PATH=/usr/bin:/bin http_proxy=http://127.0.0.1:9 NO_PROXY=example.com
"""
SHOW = 'umask; echo "$LC_ALL $PATH $http_proxy $no_proxy"'
CLEAN = """0022
C.UTF-8 /usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin http://127.0.0.1:9 localhost,127.0.0.1,::1,example.com
"""


def log_in(command: str, in_data: bytes = b"") -> dict[str, Any]:
    """Run a command as a login does, in a directory that is gone."""
    Path("gone").mkdir()
    script = f"cd gone; rmdir ../gone; {LOGIN} {command}"
    done = subprocess.run(["sh", "-c", script], input=in_data, capture_output=True, check=False)
    return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}


def run(command: str, in_data: bytes = b"") -> dict[str, Any]:
    """Run a command through the helper of actions."""
    return run_command(MagicMock(_low_level_execute_command=log_in), command, in_data)


def test_a_command_returns_its_own_output_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("cat; echo no >&2; exit 3", b"given")
    assert done == {"rc": 3, "stdout": "given", "stderr": "no\n"}


def test_a_command_has_a_clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(f"{SHOW}; pwd") == {"rc": 0, "stdout": f"{CLEAN}/\n", "stderr": ""}


def test_a_module_has_a_clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = log_in(ShellModule().env_prefix(A="b") + f" env | grep ^A=; {SHOW}")
    assert done["stdout"] == f"Authorised users only.\nA=b\n{CLEAN}"


def test_a_command_that_did_not_begin_keeps_its_words() -> None:
    words = {"rc": 1, "stdout": "", "stderr": "sudo: a password is required"}
    assert run_command(MagicMock(_low_level_execute_command=lambda *_, **__: words), "true") == words
