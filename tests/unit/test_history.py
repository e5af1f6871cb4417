"""The history is readable after a power cut."""

from __future__ import annotations

from pathlib import Path

from history import read_history


def test_skips_the_line_that_a_power_cut_left(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"release": "1"}\n{"release": "2", "res\n{"release": "3"}\n')
    assert [entry["release"] for entry in read_history(file)] == ["1", "3"]


def test_without_a_file_there_are_no_entries(tmp_path: Path) -> None:
    assert read_history(tmp_path / "history.jsonl") == []
