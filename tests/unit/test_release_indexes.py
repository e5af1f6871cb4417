"""Package indexes that need a login or do not answer, and the judgement of a release before it."""

from __future__ import annotations

import base64
import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest
from ansible_collections.fastmetal.metal.plugins.module_utils.release_build import Build
from ansible_collections.fastmetal.metal.plugins.module_utils.uv import BuildError

from plugins.action.release_judge import ActionModule
from tests.unit.release_sources import make_wheel, write

DEFAULTS: dict[str, Any] = {"files": [], "include": []}
PASSWORD = "kmQ7-not-shown"


class Index(http.server.SimpleHTTPRequestHandler):
    """A package index that asks for a login and looks for the password among all processes."""

    shown: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer with a page or a file."""
        login = base64.b64encode(f"deploy:{PASSWORD}".encode()).decode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                texts = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
                self.shown.extend(str(process) for text in texts if PASSWORD.encode() in text)
        if self.headers["Authorization"] == f"Basic {login}":
            super().do_GET()
        else:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index that has the package alpha."""
    (tmp_path / "simple/alpha").mkdir(parents=True)
    wheel = make_wheel(tmp_path / "simple/alpha", "alpha")
    (tmp_path / "simple/alpha/index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')

    def handler(*arguments: Any) -> Index:
        return Index(*arguments, directory=str(tmp_path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use no cache and no proxy of this machine."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    for name in ("UV_OFFLINE", "UV_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


def request(tmp_path: Path, **indexes: Any) -> dict[str, Any]:
    """Return the request of an app that needs alpha."""
    write(tmp_path, {"app/main.py": "", "app/requirements.txt": "alpha\n", "server.txt": ""})
    return {
        "source": str(tmp_path / "app"),
        "server": str(tmp_path / "server.txt"),
        "indexes": indexes,
        "python_version": "3.13.5",
        "architecture": "x86_64",
        "cache": str(tmp_path / "cache"),
    }


def judge(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return what preflight says of a request."""
    task = MagicMock(args={"request": wanted}, async_val=0, check_mode=False)
    return ActionModule(task, *[MagicMock() for _ in range(5)]).run(task_vars={})


def login(password: str) -> dict[str, Any]:
    return {"127.0.0.1": {"username": "deploy", "password": password}}


def test_an_index_gets_its_login_without_showing_it(tmp_path: Path, index: str) -> None:
    judged = judge(request(tmp_path, index_url=index, index_credentials=login(PASSWORD)))
    assert judged["faults"] == []
    assert "requirements.txt has no hashes, so the versions were chosen now" in judged["warnings"][0]
    assert Index.shown == []
    for path in (tmp_path / "cache").iterdir():
        assert PASSWORD.encode() not in (path.read_bytes() if path.is_file() else b"")


def test_a_directory_of_wheels_is_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    (tmp_path / "app/wheels").mkdir(parents=True)
    make_wheel(tmp_path / "app/wheels", "alpha")
    assert judge(request(tmp_path, find_links=["wheels"]))["faults"] == []
    (fault,) = judge(request(tmp_path))["faults"]
    assert "alpha" in fault


def test_a_login_that_an_index_refuses_is_a_fault(tmp_path: Path, index: str) -> None:
    (fault,) = judge(request(tmp_path, index_url=index, index_credentials=login("wrong-one")))["faults"]
    assert "The versions of" in fault
    assert "401" in fault
    assert "wrong-one" not in fault


def test_a_login_without_a_password_is_named(tmp_path: Path) -> None:
    wanted = request(tmp_path, index_credentials={"pypi.example.com": {"username": "x"}})
    assert judge(wanted)["faults"] == [
        "index_credentials.pypi.example.com must have the keys username and password."
    ]


def test_an_index_that_does_not_answer_stops_the_build_only(tmp_path: Path) -> None:
    wanted = request(tmp_path, index_url="http://127.0.0.1:9/simple")
    assert judge(wanted)["faults"] == []
    locked = write(tmp_path, {"locked.txt": f"alpha==1.0 --hash=sha256:{'0' * 64}\n"}) / "locked.txt"
    assert judge(wanted | {"requirements": str(locked)})["faults"] == []
    with pytest.raises(BuildError, match=r"The versions of .* cannot be chosen: .*127.0.0.1:9"):
        Build(
            {"subdirectory": "", "files": [], "include": [], "requirements": "", "version": "", "commit": ""}
            | wanted
        )


def test_a_fault_of_the_lock_is_a_sentence_of_preflight(tmp_path: Path) -> None:
    wanted = request(tmp_path)
    (tmp_path / "app/requirements.txt").unlink()
    write(tmp_path, {"app/poetry.lock": ""})
    (fault,) = judge(wanted)["faults"]
    assert "export it in" in fault


def test_the_range_of_python_versions_is_left_to_the_role(tmp_path: Path) -> None:
    wanted = request(tmp_path)
    project = '[build-system]\nrequires = ["setuptools"]\n[project]\nname = "x"\nversion = "1"\n'
    project += 'requires-python = ">=3.99"\n'
    write(tmp_path, {"app/pyproject.toml": project, "app/requirements.txt": ""})
    assert judge(wanted)["faults"] == []
