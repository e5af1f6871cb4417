"""`board` brings a Python that its host does not have; the other services run with the host's."""

from __future__ import annotations

from tests.apps import APPS
from tests.apps.host import Apps


def test_board_runs_with_its_own_python(apps: Apps) -> None:
    host = apps.ssh("python3 -c 'import sys; print(*sys.version_info[:2])'")
    assert host == "3 11"
    code = "import sys; print(*sys.version_info[:2], sys.base_prefix)"
    for service in APPS:
        version = apps.ssh(f"/srv/{service}/current/venv/bin/python -c '{code}'").rsplit(" ", 1)
        if service == "board":
            assert version[0] == "3 13"
            assert version[1].startswith("/srv/board/pythons/3.13.")
        else:
            assert version == [host, "/usr"]


def test_the_process_is_that_interpreter(apps: Apps) -> None:
    unit = f"board@{apps.release('board')}.service"
    pid = apps.ssh(f"systemctl show --property=MainPID --value {unit}")
    assert "/srv/board/pythons/" in apps.ssh(f"cat /proc/{pid}/maps")
