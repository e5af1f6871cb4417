"""Print what an environment's variables resolve to, or write all golden files.

    python -m tests.golden single      # print
    python -m tests.golden single --set '{"redis_port": 6380}'
    python -m tests.golden --update    # rewrite tests/golden/*.yml

Facts and secrets are stubs, so no host and no vault is needed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent
INVENTORIES = {
    "single": ROOT / "inventories/staging",
    "split": ROOT / "inventories/production",
    "monitoring_apart": GOLDEN / "monitoring_apart",
    "several": GOLDEN / "several",
    "apps": ROOT / "molecule/apps/inventory",
}
# Values that the files of a running lab have.
LAB = {"ansible_host": "192.0.2.51", "base_admin_authorized_keys": []}
CA = {"tls_ca_certificate", "tls_ca_key"}
# Variables of no role.
SHARED = {"environment_name", "private_address", "public_name", "services"}
FACTS = {
    "ansible_distribution_release": "trixie",
    "ansible_memtotal_mb": 4096,
    "ansible_processor_cores": 4,
    "ansible_processor_vcpus": 4,
}


def stub_secrets(*folders: Path) -> dict[str, str]:
    """Return a value for every secret that the files of some folders name, and for the CA."""
    files = (path for folder in folders for path in folder.glob("*.yml") if path.exists())
    names = {name for path in files for name in re.findall(r"\bsecret_\w+", path.read_text())}
    return {name: name.removeprefix("secret_").removesuffix("_password") for name in {*names, *CA}}


def hosts(inventory: Path, **changes: Any) -> Iterator[tuple[str, dict[str, Any], Templar]]:
    """Yield the name and the variables of each host, as written but for `changes`, and what resolves them."""
    loader = DataLoader()
    load = loader.load_from_file
    loader.load_from_file = lambda path, **options: (
        {} if path.endswith("vault.yml") else load(path, **options)
    )
    # Where the plays are: a group_vars folder beside them would win over the environment's.
    loader.set_basedir(str(ROOT / "playbooks"))
    manager = InventoryManager(loader=loader, sources=[str(inventory)])
    variables = VariableManager(loader=loader, inventory=manager)
    secrets = stub_secrets(ROOT / "group_vars/all", inventory / "group_vars/all")
    for host in manager.get_hosts():
        variables.set_host_facts(host.name, FACTS)
        stubs = secrets | (LAB if "lab" in (group.name for group in host.get_groups()) else {})
        for name, value in (stubs | changes).items():
            variables.set_host_variable(host.name, name, value)
    hostvars = HostVars(manager, variables, loader)
    defaults: dict[str, Any] = {}
    for path in sorted(ROOT.glob("roles/*/defaults/main.yml")):
        defaults |= loader.load_from_file(str(path), trusted_as_template=True)
    for host in sorted(manager.get_hosts(), key=lambda host: host.name):
        own = variables.get_vars(host=host, include_hostvars=False)
        yield host.name, own, Templar(loader, {**defaults, **own, "hostvars": hostvars})


def resolve(inventory: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """Return {host: {variable: value}} of what an inventory sets for the roles of each host.

    Raises SystemExit if preflight would refuse a variable.
    """
    resolved = {}
    # Not before init_plugin_loader, or no filter of the collection would be found.
    from plugins.action import check_hosts
    from plugins.plugin_utils.specs import load_specs

    specs = load_specs()
    for host, variables, templar in hosts(inventory, **changes):
        roles = templar.template(variables["preflight_roles"])
        own = templar.template(variables.get("preflight_own_variables", []))
        if faults := [*check_hosts.variable_faults(roles, specs, variables, templar, own)]:
            raise SystemExit("\n".join(f"{host}: {fault}" for fault in faults))
        prefixes = tuple(f"{role}_" for role in roles)
        names = (name for name in sorted(variables) if name in SHARED or name.startswith(prefixes))
        resolved[host] = {
            name: check_hosts.evaluate(name, variables[name], templar) for name in names if name not in CA
        }
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(resolved).replace(str(ROOT), "<checkout>"))
    return plain


class Dumper(yaml.SafeDumper):
    """Writes short collections in one line, and text of several lines as it is."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent a list in a mapping, too."""
        super().increase_indent(flow, indentless and flow)

    def represent_data(self, data: Any) -> yaml.Node:
        """Choose the style of a value."""
        node: yaml.Node = super().represent_data(data)
        if isinstance(node, yaml.CollectionNode):
            node.flow_style = len(json.dumps(data)) < 110
        elif isinstance(node, yaml.ScalarNode) and "\n" in node.value:
            node.style = "|"
        return node


def render(resolved: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a golden file: the values all hosts agree on that have a variable, then each host's own."""
    found: dict[str, list[Any]] = {}
    for variables in resolved.values():
        for name, value in variables.items():
            found.setdefault(name, []).append(value)
    shared = {
        name: values[0] for name, values in sorted(found.items()) if values.count(values[0]) == len(values)
    }
    own = {
        host: {name: value for name, value in variables.items() if name not in shared}
        for host, variables in resolved.items()
    }
    text = yaml.dump({"all": shared, **own}, Dumper=Dumper, sort_keys=False, width=1000)
    return f"---\n# Written by `python -m tests.golden --update`.\n{text}"


def main() -> None:
    """Print one environment, or write the files of all."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("name", nargs="?", choices=INVENTORIES)
    choice.add_argument("--update", action="store_true", help="rewrite the golden files")
    parser.add_argument("--set", default={}, type=json.loads, metavar="JSON", help="variables of every host")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as collections:
        # This checkout's filters, whichever collection is installed.
        checkout = Path(collections, "ansible_collections/fastmetal/metal")
        checkout.parent.mkdir(parents=True)
        checkout.symlink_to(ROOT)
        init_plugin_loader([collections])
        if arguments.update:
            for name, inventory in INVENTORIES.items():
                (GOLDEN / f"{name}.yml").write_text(render(resolve(inventory)))
        else:
            sys.stdout.write(render(resolve(INVENTORIES[arguments.name], **arguments.set)))


if __name__ == "__main__":
    main()
