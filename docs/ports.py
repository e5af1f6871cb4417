#!/usr/bin/env python3
"""Write the tables of ports in docs/topologies.md from the firewall's rules in the golden files.

With --check, write nothing and exit with 1 if the tables are out of date.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs/topologies.md"
GOLDEN = ROOT / "tests/golden"
# Every function on hosts of its own, all of them on one host, and applications beside their servers.
WIDE = "several"
CO_LOCATED = ("single", "apps")
GROUPS = ("edge", "app", "postgres", "redis", "monitoring")
# The numbers of accounts that systemd makes when a unit starts.
DYNAMIC = "61184-65519"

Hosts = Mapping[str, Mapping[str, Any]]


def hosts(name: str) -> Hosts:
    """Return {host: variables} of a golden file."""
    golden = yaml.safe_load((GOLDEN / f"{name}.yml").read_text())
    shared = golden.pop("all")
    return {host: shared | own for host, own in golden.items()}


def groups() -> dict[str, set[str]]:
    """Return {group: hosts} of the environment WIDE."""
    inventory = yaml.safe_load((GOLDEN / WIDE / "hosts.yml").read_text())
    return {group: set(content["hosts"]) for group, content in inventory["all"]["children"].items()}


def names_of(found: set[str]) -> str:
    """Return hosts by their groups."""
    members = groups()
    if found == set.union(*members.values()):
        return "every host"
    return ", ".join(group for group in GROUPS if members[group] & found)


def clients(rule: Mapping[str, Any], environment: Hosts, own: set[str]) -> str:
    """Return by whose hosts a port is used; `own` are those that have it."""
    if "from" not in rule:
        return "every address"
    networks = [ipaddress.ip_network(network) for network in rule["from"]]
    addresses = {
        host: ipaddress.ip_address(values["private_address"]) for host, values in environment.items()
    }
    found = {host for host, address in addresses.items() if any(address in network for network in networks)}
    return "all other hosts" if len(own) == 1 and found == environment.keys() - own else names_of(found)


def remote_rows() -> Iterator[str]:
    """Yield a row for each port that other hosts can reach."""
    environment = hosts(WIDE)
    rules: dict[str, dict[str, Any]] = {}
    for host, values in environment.items():
        for name, rule in values["firewall_base_rules"].items():
            if rule and rule["ports"] and rule.get("from", ["all"]):
                rules.setdefault(name, {"rule": rule, "hosts": set()})["hosts"].add(host)
    for name, entry in sorted(rules.items(), key=lambda item: item[1]["rule"]["ports"]):
        rule = entry["rule"]
        ports = ", ".join(map(str, rule["ports"])) + ("/udp" if rule.get("protocol") == "udp" else "")
        on, source = names_of(entry["hosts"]), clients(rule, environment, entry["hosts"])
        yield f"| {ports} | `{name}` | {on} | {source} | {rule['why']} |"


def account_name(account: str, services: Mapping[str, Any]) -> str:
    """Return an account as Markdown; the names of an example's services have no meaning."""
    if account in services:
        return "services with this server"
    return "that of stunnel" if account == DYNAMIC else f"`{account}`"


def local_rows() -> Iterator[str]:
    """Yield a row for each port on loopback."""
    rules: dict[str, dict[str, Any]] = {}
    for name in (WIDE, *CO_LOCATED):
        for values in hosts(name).values():
            for rule, entry in values["firewall_base_local"].items():
                if entry:
                    found = rules.setdefault(rule, {"ports": entry["ports"], "accounts": set()})
                    found["accounts"] |= {
                        account_name(word, values["services"]) for word in entry["accounts"]
                    }
    for rule, entry in sorted(rules.items(), key=lambda item: item[1]["ports"]):
        accounts = ", ".join(sorted(entry["accounts"])) or "none"
        yield f"| {', '.join(map(str, entry['ports']))} | `{rule}` | {accounts} |"


def tables() -> dict[str, str]:
    """Return {name: table}."""
    remote = ["| port | rule | on | open to | what |", "|---|---|---|---|---|", *remote_rows()]
    local = ["| port | entry | accounts besides root and administrators |", "|---|---|---|", *local_rows()]
    return {"remote": "\n".join(remote), "local": "\n".join(local)}


def document() -> str:
    """Return docs/topologies.md with current tables."""
    text = TARGET.read_text()
    for name, table in tables().items():
        mark = f"<!-- {name} ports, written by docs/ports.py -->"
        text, count = re.subn(f"{mark}\n(\\|.*\n)*", f"{mark}\n{table}\n", text)
        if count != 1:
            raise SystemExit(f"{TARGET} needs the line {mark} once")
    return text


def main() -> int:
    """Write the tables, or compare them with the file."""
    wanted = document()
    if sys.argv[1:] == ["--check"]:
        return int(TARGET.read_text() != wanted)
    TARGET.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
