"""Releases from a directory, a git ref and a wheel; the same source gives the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__
from tests.lab import ROOT
from tests.release.faults import only_ssh
from tests.release.fleet import Fleet

pytestmark = pytest.mark.timeout(300)


def test_a_version_that_is_deployed_again_has_the_same_files(fleet: Fleet) -> None:
    given = fleet.build()
    version = Path(given["app_source"]).name
    fleet.deploy_version(version, **given)
    first = fleet.digest(version)
    fleet.deploy_version(__version__, app_source="HEAD", app_artifacts=given["app_artifacts"])
    marks = "/srv/api/releases/*/release.json"
    for host in fleet.apps:
        fleet.ssh(host, f"rm -r /srv/api/releases/{version}-*")
        # No release has the same dependencies any more, so their archive is copied.
        fleet.ssh(host, f"""sed -i 's/"dependencies"/"hidden"/' {marks}""")
    cache = Path(given["app_artifacts"])
    for archive in cache.glob(f"app-{version}-*.tar.gz"):
        archive.unlink()
    for wheel in cache.glob(f"wheel-{version}-*/*"):
        wheel.unlink()
        wheel.parent.rmdir()
    fleet.deploy_version(version, **given)
    for host in fleet.apps:
        fleet.ssh(host, f"""sed -i 's/"hidden"/"dependencies"/' {marks}""")
    assert fleet.digest(version) == first


def test_a_host_without_a_release_takes_the_one_that_the_fleet_runs(fleet: Fleet) -> None:
    """In a run without the other hosts."""
    host, live = fleet.apps[-1], fleet.versions[-1]
    fleet.ssh(host, "systemctl stop api.service api.socket 'api@*' && rm -r /srv/api")
    refused = fleet.play("app", "--limit", host, **fleet.build())
    assert refused.status == 2, refused.output
    assert f"{host} has no release yet. The other hosts run {live}-" in refused.sentences[-1]
    assert fleet.ssh(host, "ls /srv/api/releases 2>/dev/null || true") == ""
    taken = fleet.play("app", "--limit", host, **fleet.source(live))
    assert taken.status == 0, taken.output
    fleet.wait_until_live(10)


def test_a_wheel(fleet: Fleet) -> None:
    given = fleet.build()
    tree = Path(given["app_source"])
    words = [
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        f"--wheel-dir={fleet.scratch}",
        str(tree),
    ]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    wheel = next(fleet.scratch.glob(f"*-{tree.name}-*.whl"))
    fleet.deploy_version(
        tree.name, **given | {"app_source": str(wheel)}, app_requirements=str(ROOT / "requirements-app.txt")
    )


def test_a_control_node_that_reaches_the_hosts_by_ssh_only(fleet: Fleet) -> None:
    """Behind a bastion, or from a laptop."""
    with only_ssh(fleet):
        assert not fleet.answers()
        fleet.redeploy()
        fleet.rollback()
        smoke = fleet.play("smoke")
    assert smoke.status == 0, smoke.output
