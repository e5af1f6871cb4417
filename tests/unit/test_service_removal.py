"""service_removal: what it finds and removes, and that it touches nothing of another service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fastmetal.metal.plugins.module_utils import marks

from plugins.modules import service_removal

Run = Callable[..., dict[str, Any]]
FILES = (
    *(
        "etc/systemd/system/shop.service",
        "etc/systemd/system/shop.socket",
        "etc/systemd/system/shop@1.0.1.service",
    ),
    *("etc/systemd/system/shop-worker-mail@1.0.1.service", "etc/systemd/system/shop-workers.target.wants/x"),
    *("etc/systemd/system/shop-job-mail.timer", "etc/shop/shop.env", "srv/shop/history.jsonl"),
    *("var/lib/shop/media/1.png", "usr/local/lib/shop-release/__main__.py", "usr/local/sbin/shop-manage"),
)
OTHERS = (
    *("etc/systemd/system/shop2.service", "etc/systemd/system/api@1.0.1.service", "etc/shop2/shop2.env"),
    *("srv/api/history.jsonl", "usr/local/sbin/api-manage", "var/lib/shopping/x"),
)
PSQL = r"""
case "$*" in
  *pg_is_in_recovery*) echo ${STANDBY:-f};;
  *"FROM pg_database"*) echo shop;;
  *"FROM pg_roles"*) printf 'shop\nshop_owner\n';;
  *pg_size_pretty*) echo "7 MB";;
  *DROP*) echo "$*" | grep -o 'DROP.*' >> "$LOG";;
esac
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_command: Callable[[str, str], None]) -> Path:
    """A host with the service shop and others, with Postgres."""
    root = tmp_path / "root"
    for name in (*FILES, *OTHERS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "etc/passwd").write_text("root:x:0\nshop:x:990\nshop2:x:991\n")
    (root / marks.MARKS).mkdir(parents=True)
    for role in ("app", "postgresql"):
        mark = {"environment": "production", "services": ["api", "shop"]}
        (root / marks.MARKS / f"{role}.json").write_text(json.dumps(mark))
    monkeypatch.setattr(service_removal, "ROOT", root)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    fake_command("runuser", PSQL)
    fake_command("systemctl", 'echo "systemctl $*" >> "$LOG"')
    fake_command("userdel", 'echo "userdel $*" >> "$LOG"')
    return root


def run(run_module: Run, **more: Any) -> dict[str, Any]:
    """Return the module's result."""
    return run_module(service_removal, **{"service": "shop", "environment": "production", **more})


def files(root: Path) -> set[str]:
    """Return all files but marks and accounts."""
    paths = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return {path for path in paths if not path.startswith(("etc/fastmetal", "etc/passwd"))}


def test_check_mode_says_what_there_is(root: Path, run_module: Run) -> None:
    result = run(run_module, check=True)
    assert result["changed"]
    assert result["found"] == [
        "5 units (shop-job-mail.timer, shop-worker-mail@1.0.1.service, shop.service, shop.socket,"
        " shop@1.0.1.service)",
        *(
            "/etc/shop",
            "/srv/shop",
            "/var/lib/shop",
            "/usr/local/lib/shop-release",
            "/etc/systemd/system/shop-workers.target.wants",
            "/usr/local/sbin/shop-manage",
        ),
        *(
            "the account shop",
            "the database shop (7 MB)",
            "the database role shop",
            "the database role shop_owner",
        ),
    ]
    assert files(root) == {*FILES, *OTHERS}


def test_everything_of_the_service_and_nothing_else_is_removed(
    root: Path, run_module: Run, tmp_path: Path
) -> None:
    run(run_module)
    assert files(root) == set(OTHERS)
    assert (tmp_path / "log").read_text().splitlines() == [
        "systemctl disable --quiet --now --no-warn"
        " shop-job-mail.timer shop-worker-mail@1.0.1.service shop.service shop.socket shop@1.0.1.service",
        "systemctl daemon-reload",
        "userdel shop",
        'DROP DATABASE "shop" WITH (FORCE)',
        'DROP ROLE "shop"',
        'DROP ROLE "shop_owner"',
    ]
    assert json.loads((root / marks.MARKS / "app.json").read_text())["services"] == ["api"]
    assert not run(run_module)["changed"]


def test_a_service_without_a_mark_is_left_alone(root: Path, run_module: Run) -> None:
    assert run(run_module, service="shop2") == {
        "changed": False,
        "found": [],
        "invocation": {
            "module_args": {"service": "shop2", "environment": "production", "database_port": 5432}
        },
    }
    assert files(root) == {*FILES, *OTHERS}


def test_a_standby_keeps_the_database(
    root: Path, run_module: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDBY", "t")
    run(run_module)
    assert "DROP" not in (tmp_path / "log").read_text()
    assert files(root) == set(OTHERS)


def test_a_host_of_another_environment_is_refused(root: Path, run_module: Run) -> None:
    result = run(run_module, environment="staging")
    assert result["msg"] == "The host belongs to the environment production."
    assert files(root) == {*FILES, *OTHERS}


@pytest.mark.parametrize("name", ["", "../etc", "Shop", "shop*"])
def test_a_name_that_is_none_is_refused(root: Path, run_module: Run, name: str) -> None:
    assert "is no name of a service" in run(run_module, service=name)["msg"]
    assert files(root) == {*FILES, *OTHERS}
