"""The workflows of docs/ci: their syntax, their shell, the options of fastmetal, and the SSH key."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import ROOT

GITHUB = ROOT / "docs/ci/github.yml"
GITLAB = ROOT / "docs/ci/gitlab.yml"


def scripts(file: Path) -> Iterator[str]:
    """Yield the shell scripts of a workflow."""
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    if file == GITHUB:
        for job in content["jobs"].values():
            yield from (step["run"] for step in job["steps"] if "run" in step)
    else:
        yield "\n".join([*content[".deploy"]["before_script"], *content[".deploy"]["script"]])


each_file = pytest.mark.parametrize("file", [GITHUB, GITLAB], ids=["github", "gitlab"])


@each_file
def test_shell_is_sound(file: Path) -> None:
    for script in scripts(file):
        command = ["shellcheck", "--shell=bash", "--exclude=SC1091", "-"]
        done = subprocess.run(command, input=f"{script}\n", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@each_file
def test_fastmetal_knows_verbs_and_options(file: Path) -> None:
    loader = SourceFileLoader("fastmetal_ci", str(ROOT / "bin/fastmetal"))
    spec = spec_from_loader("fastmetal_ci", loader)
    assert spec
    cli = module_from_spec(spec)
    sys.modules["fastmetal_ci"] = cli
    loader.exec_module(cli)
    lines = [line for script in scripts(file) for line in script.splitlines() if "bin/fastmetal" in line]
    playbooks = {cli.options_of(shlex.split(line)[1:]).playbook for line in lines}
    assert playbooks == {"playbooks/deploy.yml", "playbooks/smoke.yml"}


def test_github_actions_are_pinned_and_production_waits() -> None:
    used = re.findall(r"uses: (\S+)", GITHUB.read_text())
    assert used
    assert [action for action in used if not re.search(r"@[0-9a-f]{40}$", action)] == []
    content = yaml.safe_load(GITHUB.read_text())
    assert content["concurrency"]["cancel-in-progress"] is False
    assert content["jobs"]["production"]["needs"] == "staging"
    assert {name: job["environment"] for name, job in content["jobs"].items()} == {
        "staging": "staging",
        "production": "production",
    }


def test_secrets_are_only_in_the_steps_that_need_them() -> None:
    for job in yaml.safe_load(GITHUB.read_text())["jobs"].values():
        holders = [step.get("name") for step in job["steps"] if "secrets." in str(step)]
        assert holders == ["Load the SSH key", "Deploy", "Check through every edge"]
        assert "secrets." not in str({key: value for key, value in job.items() if key != "steps"})


@pytest.mark.parametrize("kind", ["key", "certificate"])
def test_a_real_agent_loads_the_key(tmp_path: Path, kind: str) -> None:
    """Runs the step of GitHub; a certificate beside the key is loaded with it."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    script = next(script for script in scripts(GITHUB) if "ssh-add" in script)
    if kind == "certificate":  # docs/ci.md
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "ca"], check=True)
        sign = ["ssh-keygen", "-q", "-s", "ca", "-I", "pipeline 1", "-n", "ops", "-V", "+30m", "key.pub"]
        subprocess.run(sign, cwd=tmp_path, check=True)
        script = script.replace('ssh-add - <<< "$SSH_KEY"', "ssh-add key")
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "GITHUB_ENV": str(tmp_path / "env")}
    environment |= {"SSH_KEY": key.read_text(), "KNOWN_HOSTS": "web1 ssh-ed25519 AAAA"}
    script += "\nssh-add -L\nssh-agent -k > /dev/null\n"
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kinds = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("ssh-")]
    assert kinds == ["ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com"][: 2 if kind == "certificate" else 1]
    assert (tmp_path / ".ssh/known_hosts").read_text() == "web1 ssh-ed25519 AAAA\n"
    assert (tmp_path / "env").read_text().startswith("SSH_AUTH_SOCK=/")
