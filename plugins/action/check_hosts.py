"""Check the variables and the state of every host, and report each fault in one sentence.

Ansible's own validation accepts a port of 99999999, a list from "a,b" and any misspelt name.
"""

from __future__ import annotations

import fnmatch
import getpass
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.template import Templar
from ansible.utils.vars import load_extra_vars
from ansible_collections.fastmetal.metal.plugins.filter.firewall import admitted_ports
from ansible_collections.fastmetal.metal.plugins.module_utils.ownership import (
    closed_port_faults,
    ownership_faults,
    port_faults,
    removed_services,
)
from ansible_collections.fastmetal.metal.plugins.plugin_utils.services import memory_faults, service_faults
from ansible_collections.fastmetal.metal.plugins.plugin_utils.specs import (
    ROLES,
    Specs,
    advice,
    is_required,
    load_specs,
    value_faults,
)

# Variables that Ansible itself or a playbook sets.
MAGIC = {
    *(
        "ansible_*",
        "__*",
        "imported_*",
        "molecule_*",
        "group_names",
        "groups",
        "hostvars",
        "inventory_*",
        "omit",
    ),
    *(
        "play_hosts",
        "playbook_dir",
        "role_name",
        "role_names",
        "role_path",
        "environment",
        "vars",
        "port",
        "item",
        "service",
        "service_name",
        *("patch_drain_seconds", "patch_reboot", "patch_upgrade"),  # Of patch.yml.
        *("confirm", "target"),  # Of restore_site.yml.
        *(
            "database",
            "owner",
            "cache",
            "queue",
            "service_key",
            "public_url",
        ),  # Of templates of a service's entry.
    ),
}
# `make secrets` generates these besides secret_*.
GENERATED = {"tls_ca_certificate", "tls_ca_key"}
# The groups that playbooks and the wiring know.
GROUPS = {"edge", "app", "backup", "postgres", "redis", "monitoring"}
# Those of lab hosts and of hosts without a function.
OTHER_GROUPS = {"lab", "ungrouped", "service_hosts"}  # fleet.yml makes the last one.
# What the owners of a host are judged by, as arguments of ownership_faults.
WANTED = {
    "environment": "environment_name",
    "services": "services",
    "admin": "base_admin_user",
    "admin_keys": "base_admin_authorized_keys",
    "base_accounts": "ssh_base_accounts",
    "accounts": "ssh_accounts",
    "roles": "preflight_roles",
    "take_over": "preflight_take_over",
}


def purpose(option: Mapping[str, Any], folder: str) -> str:
    """Return where to set an option, and its description."""
    text = option["description"] if isinstance(option["description"], str) else option["description"][0]
    return f"set it in {folder}/group_vars/all/main.yml ({text.rstrip('.')})"


def environment_folder(inventory: str) -> str:
    """Return the folder of an environment, relative to the checkout if it is in it."""
    path = Path(inventory)
    return str(path.relative_to(ROLES.parent) if path.is_relative_to(ROLES.parent) else path)


def missing_secrets(names: Sequence[str], folder: str) -> str:
    """Return a sentence for secrets that are not set; `make secrets` knows the folders below inventories."""
    parent, _, name = folder.rpartition("/")
    move = "" if parent == "inventories" else f"move {folder} below inventories, then "
    return f"{join(names)} not set: {move}make the environment's secrets with `make secrets ENV={name}`"


def is_ipv6(text: str) -> bool:
    """Return whether a text is an IPv6 address that other hosts can use: one without a zone."""
    try:
        return not ipaddress.IPv6Address(text).scope_id
    except ValueError:
        return False


def name_faults(host: str, public_name: str) -> Iterator[str]:
    """Yield a sentence for each name that certificates cannot have."""
    if not re.fullmatch(r"(?=.{1,64}$)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", host):
        yield (
            "the inventory's name of this host cannot be in a certificate:"
            " use at most 64 letters, digits, dots and dashes"
        )
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", public_name) and not is_ipv6(
        public_name
    ):
        yield f"public_name is {public_name!r}: write a host name or an address, without scheme or path"


def evaluate(name: str, written: Any, templar: Templar) -> Any:
    """Return the value of a variable; templates of a service's entry use the objects of that service."""
    if name != "services" or not isinstance(written, Mapping):
        return templar.template(written)
    values = {}
    for service, entry in written.items():
        variables = {**templar.available_variables, "service_name": service}
        values[service] = templar.copy_with_new_env(available_variables=variables).template(entry)
    return values


def variable_faults(
    roles: Iterable[str], specs: Specs, variables: Mapping[str, Any], templar: Templar, own: Iterable[str]
) -> Iterator[str]:
    """Yield a sentence for each unknown, missing or invalid variable of a host."""
    known = {name for options in specs.values() for name in options}
    for name in sorted(set(variables) - known):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in (*MAGIC, *own)):
            hint = advice(name, known) or "remove it, or list it in preflight_own_variables"
            yield f"{name} is unknown: {hint}"
    secrets = set()
    folder = environment_folder(str(variables.get("inventory_dir", "")))
    plain: list[str] = []
    computed: list[str] = []
    # A missing variable is reported once, not again for each variable that uses it.
    demands = {name for role in roles for name, option in specs[role].items() if is_required(option)}
    for name, option in ((name, option) for role in roles for name, option in specs[role].items()):
        if name not in variables:
            if name in GENERATED and is_required(option):
                secrets.add(name)
            elif is_required(option):
                yield f"{name} is not set: {purpose(option, folder)}"
            continue
        try:
            value = evaluate(name, variables[name], templar)
        except AnsibleError as error:
            missing = re.search(r"'(\w+)' is undefined", str(error))
            if missing and missing[1].startswith("secret_"):
                secrets.add(missing[1])
            elif missing and missing[1] not in demands:
                yield f"{missing[1]} is not set, and {name} needs it"
            elif not missing:
                yield f"{name} cannot be evaluated: {str(error).rstrip('.')}"
        else:
            # So that other variables that use it need not template it again.
            templar.available_variables[name] = value
            found = list(value_faults(name, option, value))
            if isinstance(variables[name], str) and "{{" in variables[name]:
                computed += found
            else:
                plain += found
    # A computed value has the fault of the variable that it is computed from.
    yield from plain or computed
    if secrets:
        yield missing_secrets(sorted(secrets), folder)


def group_faults(groups: Iterable[str], own: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each group of a host that no playbook knows: all of it would be skipped."""
    for name in sorted(set(groups) - GROUPS - OTHER_GROUPS):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in own):
            hint = (
                advice(name, GROUPS) or f"use {', '.join(sorted(GROUPS))}, or list it in preflight_own_groups"
            )
            yield f"the inventory has the group {name}, which has no function: {hint}"


def join(names: Sequence[str]) -> str:
    """Return "a is", "a and b are", "a, b and c are"."""
    return f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"


def host_faults(probe: Mapping[str, Any], releases: Mapping[str, str], needed_mb: int) -> Iterator[str]:
    """Yield a sentence for each fault in the state of a host."""
    facts, free = probe["ansible_facts"], probe["free_mb"]
    if facts["ansible_distribution_release"] not in releases or facts["ansible_service_mgr"] != "systemd":
        yield (
            f"runs {facts['ansible_distribution']} {facts['ansible_distribution_version']} with"
            f" {facts['ansible_service_mgr']}: use a systemd host on {', '.join(releases.values())}"
        )
    if free < needed_mb:
        yield (
            f"{free} MiB are free below /, /var or /srv, and {needed_mb} are needed:"
            " free some space, or lower preflight_disk_free_mb"
        )


def unreachable_fault(output: str, login: str, admin: str) -> str:
    """Return a sentence for a host that does not answer SSH, or not to this login.

    output: What Ansible says. admin: The account that logs in once root's login is closed.
    """
    reason = (output.strip().splitlines() or [""])[-1].rpartition("over ssh: ")[2].rstrip(".")
    hint = "see that it is on, and that ansible_host, ansible_user and your key are right"
    if "Permission denied" in reason and login == "root":
        hint = f"the first run closes root's login, so set ansible_user to {admin}"
    return f"cannot be reached ({reason or 'no answer'}): {hint}"


def unusable_fault(reason: str) -> str:
    """Return a sentence for a host on which no module can run."""
    words = reason.lower()
    if "incorrect" in words and "password" in words:
        return "the password for sudo is wrong: run again with --ask-become-pass and ansible_user's password"
    if "password is required" in words or ("missing" in words and "password" in words):
        return "sudo asks for a password: run again with --ask-become-pass, or allow ansible_user NOPASSWD"
    if "not in the sudoers" in words or "may not run sudo" in words:
        return "ansible_user may not use sudo: allow it there, or log in as another account"
    last = (reason.strip().splitlines() or ["no answer"])[-1]
    return f"cannot be managed ({last}): it needs python3, and ansible_user needs sudo"


def administrator(variables: Mapping[str, Any]) -> str:
    """Return the administrator's account, which logs in once root's login is closed."""
    return str(variables.get("base_admin_user") or "ops")


def listens_to_itself(exporter_address: object, exporter_clients: object) -> bool:
    """Return whether the only host of an environment exposes its exporters to no other host."""
    return not exporter_clients and ipaddress.ip_address(str(exporter_address)).is_loopback


def address_faults(address: object, *, public: bool) -> Iterator[str]:
    """Yield a sentence if private_address is not an address, or is public without permission."""
    try:
        parsed = ipaddress.ip_address(str(address))
    except ValueError:
        yield (
            f"private_address is {address}, not an IPv4 or IPv6 address:"
            " set it to the address at which the other hosts reach this one"
        )
    else:
        if parsed.version == 6 and (parsed.is_link_local or parsed.ipv4_mapped):
            yield (
                f"private_address is {address}, which is valid on one link only or stands for an IPv4 one:"
                " set it to a unique local or global address, such as fd12:3456:789a::11"
            )
        if parsed.is_global and not public:
            yield (
                f"private_address is {address}, a public address, and services for other hosts would listen"
                " on it: set it to the address in a private network, or put a firewall in front and set"
                " preflight_public_addresses to true"
            )


class ActionModule(ActionBase):
    """Action `check_hosts`: the probed hosts and the supported releases ({code name: name})."""

    _requires_connection = False
    # {service that the environment no longer has: hosts that have it}
    removed: dict[str, list[str]]

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Fail with each fault once, after the names of the hosts that have it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.removed = {}
        every = {host: task_vars["hostvars"].raw_get(host) for host in self._task.args["hosts"]}
        unchecked = {
            host: values for host, values in every.items() if "skipped" not in values["__preflight_probe"]
        }
        specs = load_specs() if unchecked else {}
        hosts_of: dict[str, list[str]] = {}
        for host, variables in unchecked.items():
            for fault in self.faults(variables, specs, task_vars["hostvars"]):
                hosts_of.setdefault(fault, []).append(host)
        if hosts_of:
            sentences = (f"{', '.join(hosts)}: {fault}".rstrip(".?") for fault, hosts in hosts_of.items())
            result.update(failed=True, msg="\n".join(f"{sentence}." for sentence in sentences))
        result["warnings"] = [
            f"{', '.join(hosts)}: the service {name} is no longer in services. It is not managed any more,"
            f" and its units and data stay: remove them by playbooks/remove_service.yml -e service={name}."
            for name, hosts in sorted(self.removed.items())
        ]
        return result

    def faults(self, variables: Mapping[str, Any], specs: Specs, hostvars: Any) -> Iterator[str]:
        """Yield the faults of one host."""
        probe = variables["__preflight_probe"]
        if "unreachable_because" in probe:
            login = variables.get("ansible_user") or getpass.getuser()
            yield unreachable_fault(probe["unreachable_because"], login, administrator(variables))
            return
        if "unusable" in probe:
            yield unusable_fault(probe["unusable"])
            return
        defaults: dict[str, Any] = {}
        for path in sorted(ROLES.glob("*/defaults/main.yml")):
            defaults |= self._loader.load_from_file(str(path), trusted_as_template=True) or {}
        templar = Templar(self._loader, {**defaults, **variables, "hostvars": hostvars})

        def value(name: str) -> Any:
            return evaluate(name, variables.get(name, defaults.get(name)), templar)

        if "{{" not in str(own_name := variables["service_name"]):  # A variable of 0.1.0.
            yield f"service_name is {own_name}: remove it, and set services to {{{own_name}: {{}}}}"
            return
        own = value("preflight_own_variables")
        wrong = list(variable_faults(value("preflight_roles"), specs, variables, templar, own))
        yield from wrong
        yield from group_faults(variables["group_names"], value("preflight_own_groups"))
        if not wrong:
            yield from name_faults(variables["inventory_hostname"], value("public_name"))
            extra = load_extra_vars(self._loader)
            written = {name: variables[name] for name in variables if name not in extra}
            yield from service_faults(value("services"), written)
            yield from memory_faults(
                {name: value("services")[name].get("memory_mb", 0) for name in value("preflight_services")},
                value("postgresql_memory_percent") if "postgresql" in value("preflight_roles") else 0,
                probe["ansible_facts"]["ansible_memtotal_mb"],
            )
            alone = len(hostvars) == 1 and listens_to_itself(
                value("exporter_address"), value("exporter_client_addresses")
            )
            public = alone or boolean(value("preflight_public_addresses"))
            yield from address_faults(value("private_address"), public=public)
            needed_mb = int(value("preflight_disk_free_mb"))
            yield from host_faults(probe, self._task.args["releases"], needed_mb)
            yield from port_faults(probe["listeners"], value("preflight_ports"))
            wanted = {key: value(name) for key, name in WANTED.items()}
            if boolean(value("firewall_enabled")) and "firewall" not in {
                *probe["marks"],
                *wanted["take_over"],
            }:
                admitted = admitted_ports(value("firewall_base_rules"), value("firewall_rules"))
                ours = [port for ports in value("preflight_ports").values() for port in ports]
                if admitted is not None:  # Otherwise the role firewall refuses the rules.
                    yield from closed_port_faults(probe["listeners"], admitted, ours)
            login = probe["login"] or value("ansible_user")
            for name in removed_services(probe["marks"], wanted["services"]):
                self.removed.setdefault(name, []).append(variables["inventory_hostname"])
            yield from ownership_faults(probe, {**wanted, "login": login})
