"""file_set brings files to the desired state, or leaves all of them alone."""

from __future__ import annotations

import grp
import os
import stat
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from plugins.module_utils import marks
from plugins.modules import file_set
from tests.unit.conftest import FakeCommand, RunModule

GROUP = grp.getgrgid(os.getgid()).gr_name


@pytest.fixture(autouse=True)
def own_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files belong to the user that runs the tests, who need not be root."""
    monkeypatch.setattr(file_set, "ROOT", os.getuid())
    monkeypatch.setattr(file_set, "ROOT_GROUP", os.getgid())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty directory on the host."""
    folder = tmp_path / "etc"
    folder.mkdir()
    return folder


def entry(path: Path, content: str, **more: Any) -> dict[str, Any]:
    """Return an entry of files."""
    return {"path": str(path), "content": content, "group": GROUP, **more}


def mode_of(path: Path) -> int:
    """Return a path's mode."""
    return stat.S_IMODE(path.stat().st_mode)


def test_writes_files_and_their_directories_once(folder: Path, run_module: RunModule) -> None:
    files = [
        entry(folder / "new/a.conf", "a\n"),
        entry(folder / "secret", "b\r\n", mode="0600"),
    ]
    result = run_module(file_set, files=files)
    assert result["changed"] is True
    assert result["paths"] == [file["path"] for file in files]
    assert (folder / "new/a.conf").read_text() == "a\n"
    assert (folder / "secret").read_bytes() == b"b\r\n"
    assert [mode_of(folder / name) for name in ("new/a.conf", "secret")] == [0o644, 0o600]
    assert run_module(file_set, files=files[:1])["changed"] is False


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose marks are below the test's own directory."""
    for name in ("claim", "is_marked"):
        monkeypatch.setattr(file_set, name, partial(getattr(marks, name), root=tmp_path / "host"))
    return tmp_path / "host"


def test_the_first_run_of_a_role_marks_it_and_keeps_what_was_there(
    folder: Path, host: Path, run_module: RunModule
) -> None:
    theirs, stale, other = folder / "nginx.conf", folder / "stale.conf", folder / "other.conf"
    theirs.write_bytes(b"caf\xe9")
    for path in (stale, other):
        path.write_text("theirs")
    owner = {"role": "nginx", "environment": "lab", "services": ["api"]}
    arguments: dict[str, Any] = {
        "files": [entry(theirs, "ours\n")],
        "purge": [f"{folder}/stale*"],
        "keep": [str(other)],
        "owner": owner,
    }
    assert run_module(file_set, check=True, **arguments)["changed"] is True
    assert not host.exists()
    assert "/etc/fastmetal/functions/nginx.json" in run_module(file_set, **arguments)["paths"]
    assert marks.read_marks(host) == {"nginx": {"environment": "lab", "services": ["api"]}}
    copies = host / marks.REPLACED / folder.relative_to("/")
    assert sorted(path.name for path in copies.iterdir()) == ["nginx.conf", "other.conf", "stale.conf"]
    assert (copies / "nginx.conf").read_bytes() == b"caf\xe9"
    assert run_module(file_set, **arguments)["changed"] is False
    assert run_module(file_set, **arguments, check=True)["changed"] is False


def test_corrects_content_and_mode(folder: Path, run_module: RunModule) -> None:
    for name in ("same", "content", "mode"):
        (folder / name).write_text("x")
        (folder / name).chmod(0o644)
    (folder / "content").write_text("y")
    (folder / "mode").chmod(0o666)
    result = run_module(file_set, files=[entry(folder / name, "x") for name in ("same", "content", "mode")])
    assert result["paths"] == [str(folder / "content"), str(folder / "mode")]
    assert (folder / "content").read_text() == "x"
    assert mode_of(folder / "mode") == 0o644


def test_shows_the_difference(folder: Path, run_module: RunModule) -> None:
    (folder / "a").write_text("old\n")
    (diff,) = run_module(file_set, files=[entry(folder / "a", "new\n")])["diff"]
    assert (diff["before"], diff["after"], diff["after_header"]) == ("old\n", "new\n", str(folder / "a"))


def test_empty_content_removes_a_file(folder: Path, run_module: RunModule) -> None:
    (folder / "a").write_text("x")
    files = [entry(folder / "a", ""), entry(folder / "missing", "")]
    assert run_module(file_set, files=files)["paths"] == [str(folder / "a")]
    assert not (folder / "a").exists()
    assert run_module(file_set, files=files)["changed"] is False


def test_check_mode_changes_nothing(folder: Path, run_module: RunModule) -> None:
    for name in ("gone", "stale.conf"):
        (folder / name).write_text("x")
    result = run_module(
        file_set,
        check=True,
        files=[
            entry(folder / "a", "x"),
            entry(folder / "gone", ""),
            entry(folder / "b", "x", group="no-such-group"),
        ],
        directories=[{"path": str(folder / "new"), "mode": "0755"}],
        purge=[str(folder / "*.conf")],
    )
    assert result["paths"] == [str(folder / name) for name in ("new", "stale.conf", "a", "gone", "b")]
    assert sorted(path.name for path in folder.iterdir()) == ["gone", "stale.conf"]


def test_an_unknown_group_is_refused(folder: Path, run_module: RunModule) -> None:
    result = run_module(file_set, files=[entry(folder / "a", "x") | {"group": "no-such-group"}])
    assert "group no-such-group does not exist" in result["msg"]


def test_one_invalid_file_prevents_all_changes(folder: Path, run_module: RunModule) -> None:
    files = [entry(folder / "a", "good"), entry(folder / "b", "bad", validate="grep --quiet good %s")]
    result = run_module(
        file_set, files=files, directories=[{"path": str(folder), "mode": "0755", "purge": True}]
    )
    assert result["failed"]
    assert f"{folder}/b would be invalid, nothing was written" in result["msg"]
    assert list(folder.iterdir()) == []


def test_validate_sees_the_files_names_and_siblings(
    folder: Path, run_module: RunModule, fake_command: FakeCommand
) -> None:
    fake_command(
        "check-unit", '[ "$(basename $1)" = a.timer ] && grep --quiet good "$(dirname $1)/a.service"'
    )
    service = entry(folder / "a.service", "good", validate="true %s")
    timer = entry(folder / "a.timer", "x", validate="check-unit %s")
    assert "failed" not in run_module(file_set, check=True, files=[service, timer])
    assert "failed" not in run_module(file_set, files=[service])
    # An unchanged sibling is there, too.
    assert "failed" not in run_module(file_set, files=[service, timer])
    other = entry(folder / "other/a.service", "good", validate="true %s")
    (folder / "a.timer").unlink()
    assert run_module(file_set, files=[other, timer])["failed"]


def test_check_mode_skips_a_validator_that_is_not_installed(folder: Path, run_module: RunModule) -> None:
    files = [entry(folder / "a", "x", validate="no-such-command %s")]
    assert run_module(file_set, check=True, files=files)["changed"] is True
    assert run_module(file_set, files=files)["failed"]


def test_purges_what_is_not_listed(folder: Path, run_module: RunModule) -> None:
    for name in ("api-job-a.service", "api-job-b.service", "api.service"):
        (folder / name).write_text("x")
    # Of `systemctl edit`.
    (folder / "api-job-a.service.d").mkdir()
    result = run_module(
        file_set, files=[entry(folder / "api-job-a.service", "x")], purge=[str(folder / "api-job-*")]
    )
    assert result["paths"] == [str(folder / "api-job-b.service")]
    left = ["api-job-a.service", "api-job-a.service.d", "api.service"]
    assert sorted(path.name for path in folder.iterdir()) == left


def test_purges_a_directory(folder: Path, run_module: RunModule) -> None:
    (folder / "stale").write_text("x")
    directories = [{"path": str(folder), "mode": "0700", "purge": True}]
    result = run_module(file_set, files=[entry(folder / "a", "x")], directories=directories)
    assert result["paths"] == [str(folder), str(folder / "stale"), str(folder / "a")]
    assert mode_of(folder) == 0o700
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_directory_goes_with_its_files(folder: Path, run_module: RunModule) -> None:
    program = folder / "program"
    program.mkdir()
    (program / "__main__.py").write_text("x")
    arguments = {
        "files": [entry(program / "__main__.py", "")],
        "directories": [{"path": str(program), "mode": "0755", "present": False}],
    }
    assert run_module(file_set, check=True, **arguments)["changed"] is True
    assert program.is_dir()
    assert run_module(file_set, **arguments)["paths"] == [str(program), str(program / "__main__.py")]
    assert not program.exists()
    assert run_module(file_set, **arguments)["changed"] is False


def test_a_failure_is_told_in_one_sentence(folder: Path, run_module: RunModule) -> None:
    (folder / "file").write_text("x")
    result = run_module(file_set, files=[entry(folder / "file/below", "x")])
    assert result["msg"].startswith("Files could not be written: ")
