"""MDN's HTTP Observatory itself; tests/observatory.py has its rules for every run."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.lab import ROOT, clean_environment


@pytest.fixture
def observatory(tmp_path: Path) -> Path:
    """Return a folder with the tool."""
    folder = tmp_path / "observatory"
    shutil.copytree(ROOT / "tests/observatory_tool", folder)
    # Its scripts would load the public list of preloaded hosts, in which no lab host is.
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=110)
    (folder / "node_modules/@mdn/mdn-http-observatory/conf/hsts-preload.json").write_text("{}")
    return folder


@pytest.mark.soak
def test_the_tool_gives_the_bare_host_130(
    front: Host, addresses: dict[str, str], observatory: Path, measured: list[str]
) -> None:
    (observatory / "ca.crt").write_text(front.file("/etc/fastmetal/tls/ca.crt").content_string)
    done = subprocess.run(
        ["node", "scan.js", addresses["front1"]],
        cwd=observatory,
        env=clean_environment(NODE_EXTRA_CA_CERTS="ca.crt"),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    measured.append(f"MDN HTTP Observatory 1.4.8: {found['score']}")
    assert found["score"] >= 130, found["rules"]
