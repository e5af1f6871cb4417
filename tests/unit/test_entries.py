"""What the filter entry_faults refuses, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.filter.entries import entry_faults

FIELDS = {"path": "str!", "rate": "str!", "burst": "int!", "tags": "list"}
BASE = {"api": {"path": "/", "rate": "50r/s", "burst": 100}}


@pytest.mark.parametrize(
    ("entries", "sentences"),
    [
        ({}, []),
        ({"api": None}, []),
        ({"api": False}, []),
        ({"api": {"rate": "5r/s"}}, []),
        (
            {"login": {"path": "/login", "rate": 1, "burst": "5"}},
            [
                "limits.login.rate must be a string: put it in quotes.",
                "limits.login.burst must be a whole number.",
            ],
        ),
        (
            {"login": "1r/s"},
            ["limits.login must be a dictionary with path, rate, burst, tags, or null to remove it."],
        ),
        ({"api": {"brust": 5}}, ["limits.api.brust is unknown: write burst."]),
        ({"api": {"zone": 5}}, ["limits.api.zone is unknown: the fields are path, rate, burst, tags."]),
        (
            {"login": {"path": "/login"}},
            [
                "limits.login.rate is missing: set it to a string.",
                "limits.login.burst is missing: set it to a whole number.",
            ],
        ),
        ({"api": {"burst": "many"}}, ["limits.api.burst must be a whole number."]),
        ({"api": {"burst": True}}, ["limits.api.burst must be a whole number."]),
        ({"api": {"tags": "a,b"}}, ["limits.api.tags must be a list."]),
    ],
)
def test_every_fault_gets_one_sentence(entries: dict[str, Any], sentences: list[str]) -> None:
    assert entry_faults(entries, "limits", BASE, FIELDS) == sentences
