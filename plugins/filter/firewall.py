"""Filters of the role firewall: entries of variables as matches of nftables, and the faults of both."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible.template import Templar
from ansible_collections.fastmetal.metal.plugins.filter.entries import entry_faults
from ansible_collections.fastmetal.metal.plugins.filter.services import service_hosts, services_on
from ansible_collections.fastmetal.metal.plugins.filter.wiring import merge_entries

Entry = dict[str, Any]

LOOPBACK = "127.0.0.1"
RATE = re.compile(r"[1-9][0-9]*/(second|minute|hour)")
# Fields of an entry of firewall_rules, as entry_faults takes them.
RULE = {"ports": "list!", "protocol": "str", "from": "list", "why": "str"}
# It becomes a part of names in nftables.
NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")


def of_family(addresses: Iterable[str], family: str) -> list[str]:
    """Return the addresses and networks of a family, "4" or "6"."""
    return [str(address) for address in addresses if (":" in str(address)) == (family == "6")]


def matches(
    rule: Entry, port_key: str, addresses: Iterable[str] | None = None, direction: str = "saddr"
) -> list[str]:
    """Return nftables matches of a rule, one for each address family; none if `from` is empty.

    rule: Its optional keys are ports, protocol ("tcp" or "udp") and from; without from every address matches.
    port_key: What is compared with the ports, such as "th dport".
    addresses: These instead of from.
    """
    protocol = "meta l4proto " + (rule.get("protocol") or ("tcp" if rule.get("ports") else ""))
    words = []
    if protocol != "meta l4proto ":
        words.append(protocol)
    if rule.get("ports"):
        words.append(f"{port_key} {_set(rule['ports'])}")
    named = rule.get("from") if addresses is None else list(addresses)
    if named is None:
        return [" ".join(words)]
    found = (("ip", of_family(named, "4")), ("ip6", of_family(named, "6")))
    return [" ".join([f"{key} {direction} {_set(group)}", *words]) for key, group in found if group]


def _set(elements: Iterable[Any]) -> str:
    """Return a set of nftables; equal elements would be an error in one of networks."""
    return "{ " + ", ".join(dict.fromkeys(map(str, elements))) + " }"


def service_servers(
    entries: Mapping[str, Entry],
    names: Iterable[str],
    host: str,
    servers: Mapping[str, Iterable[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    """Return {service: [{server, address, ports}]} of the Postgres and Redis hosts that services connect to.

    A host that is a server itself uses no other one: the included service reaches it by sockets, another one
    by loopback.
    servers: {server: hosts}; a server's name is also that of its port.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    keys = {"postgres": "database", "redis": "cache", "redis_queue": "queue"}
    for name in names:
        entry = entries[name]
        included = "source" not in entry
        found[name] = []
        for port, hosts in servers.items():
            if not entry[keys[port]] and not (included and port != "redis_queue"):
                continue
            for server in [host] if host in hosts else hosts:
                if server != host:
                    address = str(hostvars[server]["private_address"])
                elif not included:
                    address = LOOPBACK
                else:
                    continue
                ports = [int(hostvars[server]["__ports"][port])]
                found[name].append({"server": port, "address": address, "ports": ports})
    return found


def client_connections(
    entries: Mapping[str, Entry], connections: Mapping[str, int], hosts: Sequence[str]
) -> int:
    """Return the most connections to Postgres that the services of one app host may use."""
    shares = {
        name: connections.get(name, 0) // max(1, len(service_hosts(entries[name], hosts))) for name in entries
    }
    return max((sum(shares[name] for name in services_on(entries, host)) for host in hosts), default=0)


def service_egress(
    servers: Mapping[str, list[dict[str, Any]]], entries: Mapping[str, Entry], own: Entry
) -> dict[str, Any]:
    """Return {account: {to}} of services, from service_servers; null for one that may connect everywhere.

    own: The variables app_egress and app_allowed_addresses, if the environment sets them.
    """
    found: dict[str, Any] = {}
    for name, wired in servers.items():
        entry = entries[name]
        egress = own.get("egress") or entry.get("egress", "addresses")
        allowed = own.get("allowed_addresses") or entry.get("allowed_addresses", [])
        to = [{"address": server["address"], "ports": server["ports"]} for server in wired]
        to += [{"address": address} for address in allowed] if egress == "addresses" else []
        found[name] = None if egress == "internet" else {"to": to}
    return found


def admits(rule: Entry, address: str) -> bool:
    """Return whether `from` of a rule has an address; what is no network is a fault of that rule's host."""
    try:
        networks = [ipaddress.ip_network(network, strict=False) for network in rule.get("from") or []]
    except ValueError:
        return False
    return any(ipaddress.ip_address(address) in network for network in networks)


def rules_of(hostvars: Any, host: str) -> list[Entry]:
    """Return the rules of another host; they read hostvars themselves, which hostvars[host] does not have."""
    variables = {**hostvars.raw_get(host), "hostvars": hostvars}
    templar = Templar(hostvars._loader, variables)
    base, own = (
        templar.template(variables.get(name, {})) for name in ("firewall_base_rules", "firewall_rules")
    )
    return merge_entries(base, own)


def outbound_rules(hostvars: Any, host: str) -> dict[str, dict[str, Any]]:
    """Return rules for the ports of other hosts that admit a host by its address.

    A port that is open to every address, such as ssh, is no reason to connect to it.
    """
    found = {}
    for other in hostvars:
        if other == host:
            continue
        for rule in rules_of(hostvars, other):
            # Without ports it would match all of them.
            if rule.get("ports") and admits(rule, hostvars[host]["private_address"]):
                found[f"{other}_{rule['name']}"] = {
                    "ports": rule["ports"],
                    "protocol": rule.get("protocol", "tcp"),
                    "to": [str(hostvars[other]["private_address"])],
                }
    return found


def is_open(rule: Entry | None) -> bool:
    """Return whether a rule has ports and clients; without the key from it is open to every address."""
    return bool(rule and rule["ports"] and ("from" not in rule or rule["from"]))


def remote_ports(listeners: Iterable[str]) -> list[int]:
    """Return the ports of listeners ("192.0.2.1:443") that other hosts can reach."""
    pairs = (str(listener).rpartition(":") for listener in listeners)
    remote = (port for address, _, port in pairs if not address.startswith("127.") and address != "[::1]")
    return sorted(set(map(int, remote)))


def loopback_clients(servers: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """Return {server: accounts} of the services that reach it by loopback, from service_servers."""
    found: dict[str, list[str]] = {"postgres": [], "redis": [], "redis_queue": []}
    for name in servers:
        for server in servers[name]:
            if server["address"] == LOOPBACK:
                found[server["server"]].append(name)
    return found


def limited(rules: Iterable[Entry], limits: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return the open rules with their limits in the field limits, and an empty why if they have none."""
    by_name = {
        entry["name"]: {key: entry[key] for key in entry if key != "name"} for entry in map(dict, limits)
    }
    defaults = {"burst": 5, "except": []}
    found = {name: defaults | limits for name, limits in by_name.items()}
    return [{"why": "", **rule, "limits": found.get(rule["name"], {})} for rule in rules if is_open(rule)]


def with_uids(entries: Iterable[Entry], admins: Iterable[str]) -> list[dict[str, Any]]:
    """Return entries with the uids, in nftables' words, of root, their accounts and administrators."""
    return [
        {
            **entry,
            "uids": ["0"]
            + [
                account if account[0].isdigit() else f"$uid_{account}"
                for account in dict.fromkeys([*entry["accounts"], *admins])
            ],
        }
        for entry in entries
    ]


def address_faults(variable: str, addresses: Iterable[Any]) -> list[str]:
    """Return a sentence for each entry of a list that is neither an address nor a network."""
    return [
        f"{variable} has {item}: give addresses and networks, such as 192.0.2.0/24, no names."
        for item in addresses
        if not _is_network(item)
    ]


def admitted_ports(base: Mapping[str, Any], own: Mapping[str, Any]) -> list[int | str] | None:
    """Return the ports and ranges that the merged firewall_rules admit; None if a rule has a fault."""
    if entry_faults(own, "firewall_rules", base, RULE):
        return None
    rules = merge_entries(base, own)
    if firewall_faults("firewall_rules", rules):
        return None
    return [port for rule in rules for port in rule["ports"]]


def firewall_faults(variable: str, entries: Iterable[Entry]) -> list[str]:
    """Return a sentence for each value of merged entries that nftables or the role would not take."""
    return [sentence for entry in entries for sentence in _faults(f"{variable}.{entry['name']}", entry)]


def _faults(name: str, entry: Entry) -> Iterator[str]:
    if not NAME.fullmatch(str(entry["name"])):
        yield f"{name} is no name: use lower-case letters, digits, _ and -, at most 31."
    for port in entry.get("ports", []):
        first, _, last = str(port).partition("-")
        numbers = [int(word) if word.isdecimal() else 0 for word in (first, last or first)]
        if not 1 <= numbers[0] <= numbers[1] <= 65535:
            yield f"{name}.ports has {port}: give ports, such as 8080, and ranges, such as 60000-60100."
    if entry.get("protocol", "tcp") not in ("tcp", "udp"):
        yield f"{name}.protocol is {entry['protocol']}: give tcp or udp."
    for key in ("from", "to", "except"):
        for item in entry.get(key) or []:
            if isinstance(item, dict):
                unknown = item.keys() - {"address", "ports", "protocol"}
                if unknown or "address" not in item:
                    yield f"{name}.{key} takes entries with address, ports and protocol."
                else:
                    yield from _faults(f"{name}.{key}", {"name": entry["name"], **_inner(item)})
            elif not _is_network(item):
                yield f"{name}.{key} has {item}: give addresses and networks, such as 192.0.2.0/24, no names."
    if "rate" in entry and not RATE.fullmatch(str(entry["rate"])):
        yield f"{name}.rate is {entry['rate']}: give a number of connections and a time, such as 30/minute."
    for account in entry.get("accounts", []):
        if not NAME.fullmatch(str(account)) and not re.fullmatch(r"[0-9]+(-[0-9]+)?", str(account)):
            yield f"{name}.accounts has {account}: give names of Unix accounts."
    for key in ("burst", "connections"):
        if key in entry and entry[key] < 1:
            yield f"{name}.{key} is {entry[key]}: give 1 or more."


def _inner(item: Entry) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "address"} | {"from": [item["address"]]}


def _is_network(text: Any) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        functions = (
            *(of_family, matches, remote_ports, limited, with_uids),
            *(service_servers, service_egress, loopback_clients, client_connections, outbound_rules),
            *(firewall_faults, address_faults),
        )
        return {function.__name__: function for function in functions}
