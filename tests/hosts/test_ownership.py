"""What an operator has on a host stays theirs; these tests change their hosts, in this order."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import started
from tests.lab import Lab, Run, make_environment, play

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIM9UeXLr2ZlJ0cZ4u7yJ0cZ4u7yJ0cZ4u7yJ0cZ4u7yJ"
pytestmark = pytest.mark.timeout(600)

PACKAGES = "nginx-light redis-server postgresql prometheus-node-exporter"
SITE = "server { listen 8088; root /var/www/html; }"
OWN = f"""
set -e
echo '{SITE}' > /etc/nginx/conf.d/shop.conf
echo '# theirs' >> /etc/nginx/nginx.conf
redis-cli set theirs 1
runuser --user postgres -- createdb shop
useradd --create-home --shell /bin/bash api
useradd --create-home ops
install -d /home/ops/.ssh
echo 'ssh-ed25519 {KEY} theirs' > /home/ops/.ssh/authorized_keys
useradd --create-home deploy
cp -r /home/ops/.ssh /home/deploy/
systemd-run --quiet --unit=theirs python3 -m http.server 9187
until ss --no-header --listening --tcp --numeric | grep -q ':9187 '; do sleep 0.1; done
"""
SUDO = """
useradd --create-home --shell /bin/bash worker
echo 'worker ALL=(ALL) ALL' > /etc/sudoers.d/worker
echo worker:right | chpasswd
install -d /home/worker/.ssh
cp /root/.ssh/authorized_keys /home/worker/.ssh/
chown -R worker /home/worker/.ssh
"""
# 192.0.2.0/24 exists nowhere, and the lab forwards no such port.
MIRROR = "deb [trusted=yes] http://192.0.2.1:8081/debian trixie main"


@pytest.fixture(scope="module")
def lab(measured: list[str]) -> Iterator[Lab]:
    """Return a lab with two bare hosts that these tests may change."""
    with started("pytest-owned", measured, owned="trixie", other="bookworm") as lab:
        yield lab


def run(lab: Lab, tmp_path: Path, *playbooks: str, hosts: dict[str, Any] | None = None, **values: Any) -> Run:
    """Run playbooks on hosts in every group."""
    environment = make_environment(tmp_path / "env", hosts or {"owned": {}}, lab_name=lab.name, **values)
    return play("-i", environment, *(f"playbooks/{name}.yml" for name in playbooks))


def lines(run: Run) -> list[str]:
    """Return the sentences with which preflight ended a run that changed nothing."""
    assert run.status != 0
    assert not any(run.changed.values()), run.output
    (message,) = run.sentences
    return message.splitlines()


def test_names_an_unreachable_mirror(lab: Lab, tmp_path: Path) -> None:
    lab.ssh("owned", f"cp /etc/apt/sources.list /root/; echo '{MIRROR}' > /etc/apt/sources.list")
    try:
        start = time.monotonic()
        done = run(lab, tmp_path, "base")
    finally:
        lab.ssh("owned", "mv /root/sources.list /etc/apt/sources.list")
    assert done.status != 0
    assert "The package mirror 192.0.2.1:8081 cannot be used (Could not connect" in done.sentences[0]
    # 30 s for the task, the rest for what comes before it on a busy machine. Without timeouts: 240 s.
    assert time.monotonic() - start < 120


def test_names_a_missing_and_a_wrong_password_for_sudo(lab: Lab, tmp_path: Path) -> None:
    for host in ("owned", "other"):
        lab.ssh(host, SUDO)
    worker = {"ansible_user": "worker"}
    hosts = {"owned": worker, "other": {**worker, "ansible_become_password": "wrong"}}
    other, owned = sorted(lines(run(lab, tmp_path, "preflight", hosts=hosts)))
    assert owned.startswith("owned: sudo asks for a password: run again with --ask-become-pass")
    assert other.startswith("other: the password for sudo is wrong: run again with --ask-become-pass")
    for host in ("owned", "other"):
        lab.ssh(host, "userdel --force --remove worker")  # Ansible's connection may be open.


def test_freshly_installed_packages_are_no_obstacle(lab: Lab, tmp_path: Path) -> None:
    lab.ssh("owned", f"apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -qq {PACKAGES}")
    assert "active" in lab.ssh("owned", "systemctl is-active nginx redis-server prometheus-node-exporter")
    done = run(lab, tmp_path, "preflight")
    assert done.status == 0, done.output


def test_refuses_each_thing_of_the_operator(lab: Lab, tmp_path: Path) -> None:
    lab.ssh("owned", OWN)
    found = lines(run(lab, tmp_path, "preflight"))
    parts = [
        "port 9187 is taken by python3 (theirs.service), and prometheus-postgres-exporter.service needs it",
        "has the PostgreSQL cluster 17/main with data, which the role postgresql would take over",
        "has the data of redis-server, which the role redis would take over",
        "has the account api (/home/api, /bin/bash), which the role app would take over",
        "has /etc/nginx/nginx.conf and /etc/nginx/conf.d/shop.conf, which the role nginx would take over",
        "the account ops has keys that base_admin_authorized_keys lacks (1)",
        "deploy can log in with a key, and the run would refuse that: name the people in base_operators",
    ]
    for part in parts:
        assert any(sentence.startswith(f"owned: {part}") for sentence in found), found
    assert len(found) == len(parts)


def test_takes_over_what_it_is_told_to_and_keeps_copies(lab: Lab, tmp_path: Path) -> None:
    lab.ssh(
        "owned",
        "systemctl stop theirs; userdel --remove deploy;"
        " cp --archive /etc/nginx/nginx.conf /home/ops/.ssh/authorized_keys /srv/",
    )
    take_over = ["app", "base", "nginx", "postgresql", "redis"]
    first = run(lab, tmp_path / "first", "base", "edge", preflight_take_over=take_over)
    assert first.status == 0, first.output
    kept = "/etc/fastmetal/replaced"
    lab.ssh("owned", f"cmp /srv/nginx.conf {kept}/etc/nginx/nginx.conf")
    lab.ssh("owned", f"cmp /srv/authorized_keys {kept}/home/ops/.ssh/authorized_keys")
    mark = json.loads(lab.ssh("owned", "cat /etc/fastmetal/functions/nginx.json"))
    assert mark == {"environment": "pytest", "services": ["api"]}
    # A second run needs no permission for nginx and base, whose ports and files are its own now.
    found = lines(run(lab, tmp_path / "second", "preflight", environment_name="staging"))
    assert found[0].startswith("owned: belongs to the environment pytest, not to staging: remove it")
    roles = [sentence.split(", which the role ")[1].split()[0] for sentence in found[1:]]
    assert roles == ["postgresql", "redis", "app"]


def test_hosts_of_version_0_1_0_are_recognised(lab: Lab, tmp_path: Path) -> None:
    lab.ssh("owned", "mv /etc/fastmetal/functions /root/")
    try:
        found = lines(run(lab, tmp_path, "preflight"))
    finally:
        lab.ssh("owned", "mv /root/functions /etc/fastmetal/")
    assert not any("nginx" in sentence or "the account ops" in sentence for sentence in found)
