"""Dashboards have the types that Grafana publishes, checked by the TypeScript compiler."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards import load, panels
from tests.lab import ROOT

Board = dict[str, Any]
Check = Callable[[dict[str, Board]], str]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the types and the compiler, installed from package-lock.json."""
    folder = tmp_path_factory.mktemp("schema") / "schema"
    shutil.copytree(ROOT / "tests/schema", folder)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def check(compiler: Path) -> Check:
    """Return a function that compiles dashboards as literals of their type and returns the errors."""

    def compile_boards(boards: dict[str, Board]) -> str:
        for path in compiler.glob("board-*.ts"):
            path.unlink()
        for name, board in boards.items():
            text = json.dumps(board, indent=1)
            source = f"import type {{ Board }} from './dashboard.ts';\nexport const board: Board = {text};\n"
            (compiler / f"board-{name}.ts").write_text(source)
        command = ["node_modules/.bin/tsc", "-p", "."]
        return subprocess.run(command, cwd=compiler, capture_output=True, text=True, check=False).stdout

    return compile_boards


def test_every_dashboard_has_the_published_type(check: Check) -> None:
    assert check(load()) == ""


def panel_of_type(board: Board, kind: str) -> Board:
    return next(panel for panel in panels(board) if panel["type"] == kind)


MISTAKES: dict[str, Callable[[Board], object]] = {
    "dashboard": lambda board: board.update(refesh="30s"),
    "variable": lambda board: board["templating"]["list"][0].update(sort="up"),
    "link": lambda board: board["links"][0].update(type="panels"),
    "panel": lambda board: board["panels"][1].update(titel="x"),
    "kind": lambda board: board["panels"][1].update(type="graph"),
    "position": lambda board: board["panels"][1]["gridPos"].update(w="12"),
    "unit": lambda board: panel_of_type(board, "timeseries")["fieldConfig"]["defaults"].update(unit=1),
    "custom": lambda board: panel_of_type(board, "timeseries")["fieldConfig"]["defaults"].update(
        custom={"fillOpacty": 10}
    ),
    "value": lambda board: panel_of_type(board, "timeseries")["options"]["legend"].update(placement="left"),
    "options": lambda board: panel_of_type(board, "heatmap")["options"].update(calcualte=True),
    "query": lambda board: board["panels"][1]["targets"][0].update(instant="yes"),
    "annotation": lambda board: board["annotations"]["list"][0].update(enabled=True),
}


def test_each_mistake_is_reported_in_its_file(check: Check) -> None:
    """Each copy of a dashboard has one misspelt field, wrong type or unknown value."""
    boards = {name: load()["api"] for name in MISTAKES}
    for name, mistake in MISTAKES.items():
        mistake(boards[name])
    errors = check(boards)
    missed = {name for name in MISTAKES if f"board-{name}.ts(" not in errors}
    assert not missed, errors
