"""Roles' variables, faults and templates, evaluated without a host."""

from __future__ import annotations

from functools import cache
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig

from plugins.action.refuse import sentences
from tests.lab import ROOT


@cache
def load(name: str) -> tuple[DataLoader, dict[str, Any]]:
    """Return a loader for the role's directory, and the role's defaults and variables."""
    if not AnsibleCollectionConfig.collection_finder:  # tests/unit initialises it, too.
        init_plugin_loader()
    directory = ROOT / "roles" / name
    loader = DataLoader()
    loader.set_basedir(str(directory))
    values: dict[str, Any] = {}
    for path in ("defaults/main.yml", "vars/main.yml"):
        values |= loader.load_from_file(str(directory / path), trusted_as_template=True)
    return loader, values


class Role:
    """A role with the variables of one host."""

    def __init__(self, name: str, **variables: Any) -> None:
        loader, values = load(name)
        self.directory = ROOT / "roles" / name
        self.faults = values[f"__{name}_faults"]
        self.templar = Templar(loader, values | variables)

    def refusals(self) -> list[str]:
        """Return the messages with which the role rejects the variables."""
        return list(sentences(self.faults, self.templar))

    def render(self, template: str) -> str:
        """Return the rendered text of a template."""
        path = self.directory / "templates" / template
        expression = f"{{{{ lookup('ansible.builtin.template', '{path}') }}}}"
        return str(self.templar.template(trust_as_template(expression)))
