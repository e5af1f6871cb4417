"""The configuration of Nginx as a scanner judges it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.attacker import SCANNERS

SKIPPED = {
    "add_header_redefinition": "answers of the private listeners' own are no pages",
    "host_spoofing": "the private listener gets the edge's Host, with its port",
    "hsts_header": "listeners on loopback speak no TLS",
    "proxy_pass_normalized": "Prometheus and Alertmanager get the path below their own",
    "ssl_ecdh_curve": "the release has the group, or it is not in the list",
    "try_files_is_evil_too": "a matter of speed, for directories that are not there",
    "worker_rlimit_nofile_vs_connections": "the unit has LimitNOFILE",
}


@pytest.mark.parametrize("name", ["front", "back"])
def test_gixy_has_nothing_to_say(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    host: Host = request.getfixturevalue(name)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(host.check_output("nginx -T 2>/dev/null"))
    options = ["--format", "json", "--skips", ",".join(SKIPPED)]
    command: list[str | Path] = [SCANNERS / "gixy", *options, configuration]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == []
