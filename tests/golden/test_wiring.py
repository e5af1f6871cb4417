"""The wiring gives each role of each host what the golden files say, and stays easy to follow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import yaml

from tests.golden.__main__ import GOLDEN, INVENTORIES, ROOT
from tests.lab import SHARED_GROUP_VARS, clean_environment

FILES = {path.stem: path.read_text() for path in sorted(SHARED_GROUP_VARS.glob("*.yml"))}
# {variable: its value as written}
VARIABLES = {
    name: yaml.safe_dump(value) for text in FILES.values() for name, value in yaml.safe_load(text).items()
}
# For templates in a service's entry; other variables use these words, but not these variables.
OBJECTS = {"database", "owner", "cache", "queue", "service_key", "public_url"}
GROUND = {name for file in ("main", "services", "topology") for name in yaml.safe_load(FILES[file])}


def run(*arguments: str) -> str:
    """Return what `python -m tests.golden` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden", *arguments],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", INVENTORIES)
def test_results_are_the_golden_ones(name: str) -> None:
    golden = (GOLDEN / f"{name}.yml").read_text()
    assert run(name) == golden, "review the difference, then run python -m tests.golden --update"


def used_by(name: str) -> set[str]:
    """Return the shared variables that a variable's value names."""
    return set(re.findall(r"\w+", VARIABLES[name])) & VARIABLES.keys() - {name} - OBJECTS


@cache
def chain(name: str) -> tuple[str, ...]:
    """Return the longest chain from a variable down to the files of GROUND."""
    if name in GROUND:
        return (name,)
    return (name, *max((chain(used) for used in used_by(name)), key=len, default=()))


def test_chains_are_short() -> None:
    """A reader follows a variable through at most four others to the ground."""
    assert [found for found in map(chain, VARIABLES) if len(found) > 5] == []


# {the variable of a port: (its default, another value)}
PORTS: dict[str, tuple[Any, Any]] = {
    "postgresql_port": (5432, 5433),
    "redis_port": (6379, 16379),
    "redis_instances": ({"queue": {"port": 6380}}, {"queue": {"port": 16380}}),
    "grafana_port": (3000, 3001),
    "pgbackrest_port": (8432, 18432),
    "prometheus_listen_address": ("127.0.0.1:9090", "127.0.0.1:19090"),
    "alertmanager_listen_address": ("127.0.0.1:9093", "127.0.0.1:19093"),
    "nginx_status_listen": ("127.0.0.1:9181", "127.0.0.1:19181"),
    "nginx_ports": (
        {"backend": 8443, "backend_local": 9180, "guard": 8444},
        {"backend": 18443, "backend_local": 19180, "guard": 18444},
    ),
    "exporter_ports": (
        {"node": 9100, "postgres": 9187, "redis": 9121, "blackbox": 9115},
        {"node": 19100, "postgres": 19187, "redis": 19121, "blackbox": 19115},
    ),
}
USERS = {"prometheus_users": {"me": "$6$salt$0123456789012345678901"}}


def numbers(value: Any) -> set[str]:
    """Return the ports in a value."""
    return set(re.findall(r"\b\d{4,5}\b", str(value)))


def test_ports_are_written_once() -> None:
    ports = numbers([default for default, _ in PORTS.values()])
    assert ports <= numbers(FILES["topology"])
    assert [file for file, text in FILES.items() if file != "topology" and ports & numbers(text)] == []


def test_no_template_of_a_role_has_a_port() -> None:
    ports = numbers([default for default, _ in PORTS.values()])
    found = {path: ports & numbers(path.read_text()) for path in ROOT.glob("roles/*/templates/*")}
    assert {path for path, there in found.items() if there} == set()


def test_every_port_of_a_spec_can_be_changed() -> None:
    """PORTS above is complete: a variable with a port is in it, or the wiring computes it from one."""
    specs = (yaml.safe_load(path.read_text()) for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
    options = {
        name: option for spec in specs for name, option in spec["argument_specs"]["main"]["options"].items()
    }
    ports = {
        name
        for name, option in options.items()
        if name.endswith(("_port", "_ports")) or re.fullmatch(r"[0-9.]+:\d{4,5}", str(option.get("default")))
    }
    ports.add("redis_instances")  # In its entries.
    ports.remove("nginx_proxy_protocol_ports")  # It has none by default.
    computed = {
        "preflight_ports",
        "exporter_postgres_port",
        "pgbackrest_postgresql_port",
        "prometheus_prober",
    }
    assert ports == PORTS.keys() | computed
    assert computed <= VARIABLES.keys()


@pytest.mark.parametrize("name", ["single", "split", "monitoring_apart"])
def test_a_changed_port_reaches_everything_that_uses_it(name: str) -> None:
    changes = {variable: change for variable, (_, change) in PORTS.items()}
    text = run(name, "--set", json.dumps(USERS | changes))
    assert not numbers(text) & numbers([default for default, _ in PORTS.values()])


def test_accounts_that_nftables_does_not_take_get_no_port_on_loopback() -> None:
    text = run("single", "--set", json.dumps({"ansible_user": "me@corp"}))
    assert "firewall_admin_accounts: [ops]\n" in text


def test_http3_opens_its_port_for_datagrams() -> None:
    text = run("single", "--set", json.dumps({"nginx_http3": True}))
    assert re.search(r"quic: \{.*ports: \[443\], protocol: udp", text)


def test_a_removed_operator_gets_no_port_on_loopback() -> None:
    people = {"al": {"ssh_keys": ["ssh-ed25519 AAAAC3NzaC1 al"], "sudo": False}, "gone": None}
    text = run("single", "--set", json.dumps({"base_operators": people}))
    assert "firewall_admin_accounts: [ops, al]\n" in text


def test_private_variables_are_used() -> None:
    readers = [*ROOT.glob("playbooks/*.yml"), *ROOT.glob("plugins/filter/*.py")]
    text = "\n".join([*VARIABLES.values(), *(path.read_text() for path in readers)])
    unused = {name for name in VARIABLES if name.startswith("__") and not re.search(rf"\b{name}\b", text)}
    assert unused == set()


def test_public_variables_are_declared() -> None:
    specs = (yaml.safe_load(path.read_text()) for path in ROOT.glob("roles/*/meta/argument_specs.yml"))
    declared = {name for spec in specs for name in spec["argument_specs"]["main"]["options"]}
    # Playbooks set the one; preflight itself judges the other.
    declared |= {"service_name", "services"}
    declared |= OBJECTS
    assert {name for name in VARIABLES if not name.startswith(("__", "ansible_"))} - declared == set()
