"""Check the variables and the state of every host, and report each fault in one sentence.

Ansible's own validation accepts a port of 99999999, a list from "a,b" and any misspelt name.
"""

from __future__ import annotations

import difflib
import fnmatch
import ipaddress
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.yaml import yaml_load
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.template import Templar
from ansible_collections.fastmetal.metal.plugins.module_utils.ownership import ownership_faults, port_faults

Specs = Mapping[str, Mapping[str, Any]]  # {role: {option: its spec}}

ROLES = Path(__file__).resolve().parents[2] / "roles"
# Variables that Ansible itself sets.
MAGIC = {
    *("ansible_*", "__*", "molecule_*", "group_names", "groups", "hostvars", "inventory_*", "omit"),
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
    ),
}
# `make secrets` generates these besides secret_*.
GENERATED = {"tls_ca_certificate", "tls_ca_key"}
# The groups that playbooks and the wiring know.
GROUPS = {"edge", "app", "postgres", "redis", "monitoring"}
# Those of lab hosts and of hosts without a function.
OTHER_GROUPS = {"lab", "ungrouped"}
# {ending of a name: (lowest, highest value)}
BOUNDS = {
    "_port": (1, 65535),
    "_percent": (1, 100),
    "_mb": (0, 2**31),
    "_days": (1, 36500),
    "_seconds": (0, 2**31),
    "_connections": (1, 262143),
    "_workers": (1, 1024),
}
WORDS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
    "path": "a path",
}
PYTHON_TYPES: dict[str, type | types.UnionType] = {
    "bool": bool,
    "int": int,
    "float": int | float,
    "str": str,
    "path": str,
    "dict": Mapping,
}
# What the owners of a host are judged by, as arguments of ownership_faults.
WANTED = {
    "environment": "environment_name",
    "service": "app_name",
    "admin": "base_admin_user",
    "admin_keys": "base_admin_authorized_keys",
    "roles": "preflight_roles",
    "take_over": "preflight_take_over",
}
TRUTH = {"true", "false", "yes", "no", "on", "off", "0", "1"}


def fits(kind: str, value: Any) -> bool:
    """Return whether a value has a spec's type; a number or a flag in quotes has not."""
    if kind in PYTHON_TYPES:
        return isinstance(value, PYTHON_TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
    return kind != "list" or (isinstance(value, Sequence) and not isinstance(value, str))


def convert(kind: str, text: str) -> bool | int | float | str:
    """Return the flag or the number in a text, or the text: all values of `-e x=1` are strings."""
    if kind == "bool" and text.lower() in TRUTH:
        return bool(boolean(text))
    if kind in ("int", "float") and re.fullmatch(r"-?\d+", text):
        return int(text)
    if kind == "float" and re.fullmatch(r"-?\d+\.\d+", text):
        return float(text)
    return text


def value_faults(name: str, option: Mapping[str, Any], value: Any) -> Iterator[str]:
    """Yield a sentence for each fault of a value against its option's spec."""
    kind = option.get("type", "str")
    shown = "" if option.get("no_log") else f", not {value!r}"
    if value is None:
        if kind != "raw":
            yield f"{name} is empty: set it to {WORDS[kind]}{'' if is_required(option) else ', or remove it'}"
        return
    if not fits(kind, value):
        quotes = ""
        if isinstance(value, str) and convert(kind, value) != value:
            quotes = ": remove its quotes"
        elif kind in ("str", "path") and isinstance(value, int | float):
            quotes = ": put it in quotes"
        yield f"{name} must be {WORDS[kind]}{shown}{quotes}"
        return
    choices = option.get("choices")
    if choices and kind != "list" and str(value) not in [str(choice) for choice in choices]:
        yield f"{name} must be one of {', '.join(map(str, choices))}{shown}"
    if kind == "int" and int(value) != option.get("default"):  # a default of 0 may mean: computed
        for ending, (lowest, highest) in BOUNDS.items():
            named = name.endswith((ending, "." + ending[1:])) or f"{ending}s." in name
            if named and not lowest <= int(value) <= highest:
                yield f"{name} must be between {lowest} and {highest}{shown}"
    if kind == "list":
        element = {"type": option.get("elements", "raw"), "options": option.get("options")}
        element |= {key: option[key] for key in ("choices", "no_log") if key in option}
        for index, item in enumerate(value):
            yield from value_faults(f"{name}[{index}]", element, item)
    if kind == "dict" and option.get("options"):
        options = option["options"]
        for key in value:
            if key not in options:
                yield f"{name}.{key} is unknown: {advice(str(key), options) or 'remove it'}"
        for key, inner in options.items():
            if key in value:
                yield from value_faults(f"{name}.{key}", inner, value[key])
            elif inner.get("required"):
                yield f"{name}.{key} is missing: add it"


def is_required(option: Mapping[str, Any]) -> bool:
    """Return whether a variable must be set: it is required, or has no default and is no secret."""
    return bool(option.get("required", "default" not in option and not option.get("no_log")))


def advice(name: str, known: Iterable[str]) -> str:
    """Return a question with the most similar known variable, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else ""


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


def name_faults(host: str, service_name: str, app_name: str, public_name: str) -> Iterator[str]:
    """Yield a sentence for each name that certificates, accounts or units cannot have."""
    if not re.fullmatch(r"(?=.{1,64}$)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", host):
        yield (
            "the inventory's name of this host cannot be in a certificate:"
            " use at most 64 letters, digits, dots and dashes"
        )
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", service_name):
        yield (
            f"service_name is {service_name!r}, which no account, unit and database can have:"
            " use at most 31 lower-case letters, digits and dashes, a letter first"
        )
    elif app_name != service_name:
        yield f"app_name is {app_name!r}, and service_name is {service_name!r}: set service_name only"
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", public_name):
        yield f"public_name is {public_name!r}: write a host name or an address, without scheme or path"


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
            value = templar.template(variables[name])
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


def listens_to_itself(exporter_address: object, exporter_clients: object) -> bool:
    """Return whether the only host of an environment exposes its exporters to no other host."""
    return not exporter_clients and ipaddress.ip_address(str(exporter_address)).is_loopback


def address_faults(address: object, *, public: bool) -> Iterator[str]:
    """Yield a sentence if private_address is not an IPv4 address, or is public without permission."""
    try:
        parsed = ipaddress.IPv4Address(str(address))
    except ValueError:
        yield (
            f"private_address is {address}, not an IPv4 address:"
            " set it to the address at which the other hosts reach this one"
        )
    else:
        if parsed.is_global and not public:
            yield (
                f"private_address is {address}, a public address, and services for other hosts would listen"
                " on it: set it to the address in a private network, or put a firewall in front and set"
                " preflight_public_addresses to true"
            )


def load_specs() -> Specs:
    """Return the argument specs of all roles of this collection."""
    return {
        path.parts[-3]: yaml_load(path.read_text())["argument_specs"]["main"].get("options", {})
        for path in sorted(ROLES.glob("*/meta/argument_specs.yml"))
    }


class ActionModule(ActionBase):
    """Action `check_hosts`: the probed hosts and the supported releases ({code name: name})."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Fail with each fault once, after the names of the hosts that have it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
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
        return result

    def faults(self, variables: Mapping[str, Any], specs: Specs, hostvars: Any) -> Iterator[str]:
        """Yield the faults of one host."""
        probe = variables["__preflight_probe"]
        if "unreachable_because" in probe:
            reason = (
                probe["unreachable_because"].strip().splitlines()[-1].rpartition("over ssh: ")[2].rstrip(".")
            )
            yield (
                f"cannot be reached ({reason or 'no answer'}):"
                " see that it is on, and that ansible_host, ansible_user and your key are right"
            )
            return
        if "unusable" in probe:
            yield unusable_fault(probe["unusable"])
            return
        defaults: dict[str, Any] = {}
        for path in sorted(ROLES.glob("*/defaults/main.yml")):
            defaults |= self._loader.load_from_file(str(path), trusted_as_template=True) or {}
        templar = Templar(self._loader, {**defaults, **variables, "hostvars": hostvars})

        def value(name: str) -> Any:
            return templar.template(variables.get(name, defaults.get(name)))

        own = value("preflight_own_variables")
        wrong = list(variable_faults(value("preflight_roles"), specs, variables, templar, own))
        yield from wrong
        yield from group_faults(variables["group_names"], value("preflight_own_groups"))
        if not wrong:
            names = {name: value(name) for name in ("service_name", "app_name", "public_name")}
            yield from name_faults(variables["inventory_hostname"], **names)
            alone = len(hostvars) == 1 and listens_to_itself(
                value("exporter_address"), value("exporter_client_addresses")
            )
            public = alone or boolean(value("preflight_public_addresses"))
            yield from address_faults(value("private_address"), public=public)
            needed_mb = int(value("preflight_disk_free_mb"))
            yield from host_faults(probe, self._task.args["releases"], needed_mb)
            yield from port_faults(probe["listeners"], value("preflight_ports"))
            wanted = {key: value(name) for key, name in WANTED.items()}
            login = probe["login"] or value("ansible_user")
            yield from ownership_faults(probe, {**wanted, "login": login})
