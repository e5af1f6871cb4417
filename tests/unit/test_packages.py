"""Failures of apt are one sentence."""

from __future__ import annotations

import re

import pytest

from plugins.action.packages import sentence
from tests.lab import ROOT


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (
            "Failed to update apt cache after 1 retries: E: Failed to fetch"
            " http://192.0.2.1:8081/debian/dists/bookworm/InRelease  Could not connect to 192.0.2.1:8081"
            " (192.0.2.1), connection timed out\nE: Some index files failed",
            "The package mirror 192.0.2.1:8081 cannot be used (Could not connect to 192.0.2.1:8081"
            " (192.0.2.1), connection timed out): check",
        ),
        (
            "'/usr/bin/apt-get -y install redis' failed: E: Failed to fetch https://mirror.example.com/debian/pool/r.deb"
            "  Temporary failure resolving 'mirror.example.com'\nE: Unable to fetch some archives",
            "mirror.example.com cannot be used (Temporary failure resolving 'mirror.example.com'): check",
        ),
        (
            "Failed to lock apt for exclusive operation: Failed to lock directory",
            "Another program has held the",
        ),
        (
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 12",
            "for 300 s: wait until",
        ),
        ("No package matching 'redis' is available", "No package matching 'redis' is available"),
    ],
)
def test_reasons(message: str, part: str) -> None:
    assert part in sentence(message)
    assert "\n" not in sentence(message)


def test_every_role_installs_with_these_timeouts() -> None:
    tasks = [
        path
        for path in ROOT.glob("roles/*/*/**/*.yml")
        if re.search(r"\bapt:$", path.read_text(), re.MULTILINE)
    ]
    assert tasks == []
