"""Which client certificates each listener of the fleet admits."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from plugins.filter.wiring import url_host
from tests.tls import ACCEPTED_GROUPS, REFUSED_CIPHERS, REFUSED_GROUPS, admits, handshake

pytestmark = [pytest.mark.on("fleet"), pytest.mark.usefixtures("host")]

# Role of the client: the kinds of listeners that admit it. No other pair of an environment opens one.
ADMITTED: dict[str, set[str]] = {
    "edge": {"app", "guard"},
    "monitoring": {"app", "node", "postgres", "redis"},
    "logs": {"logs"},
    "exporter": set(),
    "host": set(),
    "public": set(),
    # pgBackRest's own listeners are no part of the matrix: the scenario backup asks them.
    "pgbackrest": set(),
    "backup": set(),
    "restore": set(),
    "": set(),
}
DIRECTORY = "/etc/fastmetal/tls"
LISTENERS = {"app", "guard", "node", "postgres", "redis", "logs"}

Pairs = dict[str, list[Path]]


@pytest.fixture(scope="session")
def pairs(hosts: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Return {name: certificates} of the whole fleet; the key is beside each certificate."""
    found: Pairs = {}
    for name, host in hosts.items():
        folder = tmp_path_factory.mktemp(name)
        packed = host.check_output(f"tar c -C {DIRECTORY} --exclude=new . | base64 --wrap=0")
        subprocess.run(["tar", "x", "-C", folder], input=base64.b64decode(packed), check=True)
        for key in folder.glob("*.key"):
            found.setdefault(key.stem, []).append(key.with_suffix(".crt"))
    return found


def listeners(variables: dict[str, Any]) -> dict[str, int]:
    """Return the ports of the listeners that admit client certificates, by kind."""
    exporters = {"node": 9100, "postgres": 9187, "redis": 9121} | variables["exporter_ports"]
    found = {name: exporters[name] for name in variables["exporter_names"] if variables["exporter_tls"]}
    for kind, group, variable in (
        ("app", "app", "nginx_backend_listen"),
        ("guard", "monitoring", "nginx_guard_listen"),
    ):
        for place in variables[variable] if group in variables["group_names"] else []:
            if not place.startswith("127."):
                found[kind] = int(place.rsplit(":", 1)[1])
    return found | ({"logs": 19532} if variables["logs_sender_addresses"] else {})


def test_a_listener_admits_its_roles_only(variables: dict[str, Any], pairs: Pairs) -> None:
    address = variables["private_address"]
    for kind, port in listeners(variables).items():
        for role, kinds in ADMITTED.items():
            for certificate in pairs[role] if role else [None]:
                key = certificate and certificate.with_suffix(".key")
                assert admits(address, port, certificate, key) == (kind in kinds), (kind, role)


def test_every_listener_negotiates_the_listed_groups_and_ciphers_only(variables: dict[str, Any]) -> None:
    places: dict[str, tuple[int, list[str]]] = {
        kind: (port, []) for kind, port in listeners(variables).items()
    }
    groups: dict[str, tuple[str, ...]] = dict.fromkeys(places, ACCEPTED_GROUPS)
    if "postgres" in variables["group_names"]:
        # Before release 18 it has one curve.
        places["server"] = (variables["postgresql_port"], ["-starttls", "postgres"])
        groups["server"] = ("prime256v1",)
    if variables["pgbackrest_databases"] or variables["pgbackrest_repository"]:
        places["backups"] = (variables["pgbackrest_port"], [])
        groups["backups"] = ("prime256v1",)
    if "redis" in variables["group_names"]:
        places["cache"] = (variables["redis_port"], [])
        groups["cache"] = ACCEPTED_GROUPS
    for kind, (port, options) in places.items():
        listener = f"{url_host(variables['private_address'])}:{port}"
        for group in REFUSED_GROUPS:
            assert "Cipher is (NONE)" in handshake(listener, *options, "-groups", group), (kind, group)
        for cipher in REFUSED_CIPHERS:
            found = handshake(listener, *options, "-tls1_2", "-cipher", cipher)
            assert "Cipher is (NONE)" in found, (kind, cipher)
        for group in groups[kind]:
            assert "New, TLSv1.3" in handshake(listener, *options, "-groups", group), (kind, group)


@pytest.mark.on("collector")
def test_the_fleet_has_every_pair_and_every_listener(
    all_variables: dict[str, dict[str, Any]], pairs: Pairs
) -> None:
    """The matrix has 54 cells: nine pairs, six kinds of listeners."""
    assert pairs.keys() == ADMITTED.keys() - {""}
    assert set().union(*map(listeners, all_variables.values())) == LISTENERS
