"""Secrets are replaced while the service answers: no request is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.attacker import LAB
from tests.edge import Site
from tests.lab import LAB_GROUP_VARS, ROOT, SHARED_GROUP_VARS, clean_environment, play, wait_until
from tests.load.background import loaded

REQUESTS = 5000
RATE = 30
# New connections all the time: connections that are open survive a change of the password.
RECYCLED = {"app_settings": {"DATABASE_POOL_RECYCLE": 1}}
CACHE = '"cache":"ok"'
PASSWORD = ROOT / "inventories/lab/.vault-password"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the scenario's inventory with a vault of its own, which the rotation may change."""
    directory, source = tmp_path_factory.mktemp("rotate") / "lab", ROOT / "molecule/security/inventory"
    shutil.copytree(source, directory, symlinks=True)
    shared, vault = directory / "group_vars/all/00-shared", directory / "group_vars/all/vault.yml"
    for link, target in (
        (shared, SHARED_GROUP_VARS),
        (directory / "group_vars/lab.yml", LAB_GROUP_VARS / "lab.yml"),
    ):
        link.unlink()
        link.symlink_to(target)
    vault.unlink()
    shutil.copy(LAB_GROUP_VARS / "all/vault.yml", vault)
    shutil.copy(PASSWORD, directory / ".vault-password")
    main = directory / "group_vars/all/main.yml"
    main.write_text(main.read_text().replace("__lab_checkout: ../../..", f"__lab_checkout: {ROOT}"))
    return directory


# What a rotation changes of `state`.
CHANGES = {
    "leaf": {"certificate"},
    "ca": {"certificate", "tls_ca_certificate", "tls_ca_key"},
    "redis": {"secret_redis_app_password"},
    "database": {"secret_database_app_password", "secret_database_owner_password"},
    "signing_key": {"secret_key"},
}
CHANGES["all"] = set().union(*CHANGES.values())


def state(environment: Path) -> dict[str, str]:
    """Return the secrets of the vault, and the certificate that the edge serves."""
    command = ["ansible-vault", "view", str(environment / "group_vars/all/vault.yml")]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    secrets = {name: str(value) for name, value in yaml.safe_load(text).items()}
    known = {
        name: value for name, value in secrets.items() if not name.startswith(("rotation_", "tls_other_"))
    }
    known.pop("tls_issue_since", None)
    return known | {"certificate": LAB.ssh("front1", "cat /etc/fastmetal/tls/public.crt")}


@pytest.fixture
def plan(addresses: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """Return a load in which some requests need Redis, and a token that was issued before the rotation."""
    ca = tmp_path / "ca.crt"
    ca.write_text(LAB.ssh("front1", "cat /etc/fastmetal/tls/ca.crt"))
    token = LAB.ssh("front1", "api-manage token --subject rotation --scope cache:clear --lifetime 3600")
    return {
        "url": f"https://{addresses['front1']}",
        "rate": RATE,
        "mix": "rhRt",
        "requests": {
            "r": {"path": "/api/v1/products"},
            "h": {"path": "/health/ready", "expect": CACHE},
            "t": {
                "path": "/api/v1/products/1/cache",
                "method": "DELETE",
                "status": 204,
                "headers": {"Authorization": f"Bearer {token.strip()}"},
            },
        },
        "ca": str(ca),
        "run": "rotation",
    }


def options(environment: Path, kind: str, plan: dict[str, Any]) -> list[str]:
    """Return the options of a rotation; the load expects what a client may."""
    if kind in ("leaf", "ca", "redis", "all"):
        # Redis restarts; meanwhile the service answers without its cache.
        plan["requests"]["h"]["expect"] = ""
    # The environment's CA signs the public certificate here, and no client knows the next CA beforehand.
    plan["verify"] = kind not in ("ca", "all")
    recycled = ["-e", json.dumps(RECYCLED)] if kind in ("database", "all") else []
    return ["-i", str(environment), "playbooks/rotate.yml", "-e", f"what={kind}", *recycled]


def assert_rotated(environment: Path, kind: str, before: dict[str, str]) -> None:
    """Assert that what belongs to the kind is new, and that it works."""
    if kind in ("database", "all"):
        # It logs in as the owner.
        assert LAB.ssh("front1", "api-manage current").startswith("database ")
    host = LAB.state["hosts"]["front1"]["address"]
    site = Site(host, host, LAB.ssh("front1", "cat /etc/fastmetal/tls/ca.crt"), {})
    # Redis may have restarted a moment ago.
    wait_until(10, lambda: CACHE in site.request("/health/ready").body.decode())
    after = state(environment)
    assert {name for name in before if before[name] != after[name]} == CHANGES[kind]


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", CHANGES)
def test_a_rotation_loses_no_request(
    environment: Path, plan: dict[str, Any], tmp_path: Path, kind: str, measured: list[str]
) -> None:
    arguments, before = options(environment, kind, plan), state(environment)
    with loaded(plan, tmp_path) as load:
        done = play(*arguments)
        assert done.status == 0, done.output
        seconds = time.time() - load.begun
        time.sleep(max(0.0, (REQUESTS + 10) / RATE - seconds))
    measured.append(f"rotation of {kind}: {seconds:.0f} s; {load.report.figures}")
    assert not load.report.failures, load.report.failures[:5]
    assert len(load.report.samples) >= REQUESTS
    assert seconds < 120 * (len(CHANGES) - 1 if kind == "all" else 1)
    assert_rotated(environment, kind, before)
    if kind == "signing_key":
        # Until the former key is refused, `all` does not replace the new one.
        done = play(*arguments, "-e", "rotation_overlap_seconds=0")
        assert done.status == 0, done.output


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "times"), [("ca", 2), ("database", 1), ("database", 2)])
def test_a_rotation_that_was_killed_continues(
    environment: Path, plan: dict[str, Any], tmp_path: Path, kind: str, times: int
) -> None:
    """Kill it while the services get the new values beside the former ones, or instead of them."""
    arguments, before = options(environment, kind, plan), state(environment)
    with loaded(plan, tmp_path) as load:
        command = ["ansible-playbook", *arguments]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as killed:
            assert killed.stdout
            for line in killed.stdout:
                times -= line.startswith("PLAY [Let the services use the values]")
                if not times:
                    os.killpg(killed.pid, signal.SIGKILL)
                    break
        done = play(*arguments)
        assert done.status == 0, done.output
    # Nginx closes idle connections at each reload. Clients repeat a request that meets such an end.
    lost = [sample for sample in load.report.failures if sample.fresh or sample.outcome != "reset"]
    assert not lost, lost[:5]
    assert_rotated(environment, kind, before)
