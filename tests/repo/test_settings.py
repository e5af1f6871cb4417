"""The service's settings are documented, and the tree sets no unknown setting."""

from __future__ import annotations

import re
import subprocess
import sys

import yaml
from pydantic import SecretStr

from app.settings import Settings
from tests.lab import ROOT
from tests.repo.test_specs import own_files


def test_settings_are_documented() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/settings.py", "--check"], check=False)
    assert done.returncode == 0, "run docs/settings.py"


def test_settings_txt_lists_the_services_settings() -> None:
    known = (ROOT / "app/settings.txt").read_text().splitlines()
    secret = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
    assert set(known) == secret | {name.upper() for name in Settings.model_fields.keys() - secret}
    assert "accepted_secret_keys" in known


def test_only_known_settings_are_set() -> None:
    known = {name.upper() for name in Settings.model_fields}
    used = set()
    paths = own_files("group_vars/*", "inventories/*", "molecule/*.yml", "playbooks/*.yml")
    # Those of the scenario apps are of other applications.
    for path in (path for path in paths if "molecule/apps" not in path.as_posix()):
        used |= set(re.findall(r"^\s+([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+):", path.read_text(), re.MULTILINE))
    assert {name for name in used - known if not name.startswith("ANSIBLE_")} == set()
    wiring = yaml.safe_load((ROOT / "group_vars/all/app.yml").read_text())
    wired, manage = wiring["__app_wired_secrets"], wiring["app_manage_secrets"]
    secrets = {*wired, *re.findall(r"'(\w+)': secret_", manage)}
    # Each setting comes from one secret of the vault.
    vault = set(re.findall(r"\b(?:secret|rotation)_\w+", " ".join([*wired.values(), manage])))
    assert len(secrets) == len(vault) > len(wired)
    assert secrets <= set(Settings.model_fields)
