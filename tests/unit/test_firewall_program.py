"""The program that loads the firewall's rules, with stubs of nft and systemd."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.roles import Role

OLD, NEW = "define uid_shop = 9\nold\n", "new\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a function that writes a script into the program's PATH."""

    def write_script(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    (tmp_path / "bin").mkdir()
    return write_script


@pytest.fixture
def program(tmp_path: Path, write: Callable[[str, str], Path]) -> Path:
    """Return the program, whose files are in tmp_path; the old rules are confirmed and loaded."""
    text = Role("firewall", __firewall_file=str(tmp_path / "firewall.nft")).render("firewall.sh.j2")
    text = text.replace("/run/fastmetal-firewall", str(tmp_path / "run"))
    text = text.replace("PATH=", f"PATH={tmp_path}/bin:")
    for name in ("nft", "systemctl", "systemd-run", "sleep"):
        write(name, "")
    (tmp_path / "firewall.nft").write_text(OLD)
    path = write("fastmetal-firewall", text)
    subprocess.run([path, "start"], check=True)
    return path


def test_a_refresh_keeps_the_rules_of_a_try_that_runs_meanwhile(
    program: Path, tmp_path: Path, write: Callable[[str, str], Path]
) -> None:
    write("id", "echo 1234")
    write("sleep", f"echo new | {program} try")
    subprocess.run([program, "refresh"], check=True, timeout=20)
    assert (tmp_path / "run/loaded.nft").read_text() == NEW
    subprocess.run([program, "confirm"], check=True, timeout=20)
    assert (tmp_path / "firewall.nft").read_text() == NEW


def test_a_verb_waits_for_another_one(program: Path, tmp_path: Path) -> None:
    with (tmp_path / "run/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen([program, "try"], stdin=subprocess.PIPE) as process:
            assert process.stdin
            process.stdin.write(NEW.encode())
            process.stdin.close()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            assert not (tmp_path / "run/trial.nft").exists()
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert process.wait(20) == 0
    assert (tmp_path / "run/loaded.nft").read_text() == NEW


def test_rules_that_nft_refuses_are_not_kept(
    program: Path, tmp_path: Path, write: Callable[[str, str], Path]
) -> None:
    write("nft", "exit 1")
    assert subprocess.run([program, "try"], input=NEW.encode(), check=False).returncode == 1
    assert not (tmp_path / "run/trial.nft").exists()
    assert (tmp_path / "run/loaded.nft").read_text() == OLD
