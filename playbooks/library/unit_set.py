#!/usr/bin/python3
"""Enable and run a set of units in one task, restarting those whose files have just changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: unit_set
short_description: Run several systemd units in one task
description:
  - What a systemd_service task per unit would do, in one round trip.
  - A unit restarts when one of its files is among O(changed_files), which is what M(file_set) returns.
author: Fastmetal
options:
  units:
    description: The units.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {type: str, required: true, description: "Name with its type, such as C(nginx.service)."}
      wanted: {type: bool, default: true, description: "Enabled and running, or neither."}
      files: {type: list, elements: path, default: [], description: "What it reads at its start."}
  changed_files:
    description: Files that this run has written.
    type: list
    elements: path
    default: []
"""

RETURN = r"""
commands: {type: list, returned: always, description: "What systemctl was told, but for reloads."}
"""

EXAMPLES = r"""
- name: Run the exporters
  unit_set:
    units:
      - name: prometheus-node-exporter.service
        files: [/etc/default/prometheus-node-exporter]
    changed_files: "{{ __files.paths }}"
"""

RUNNING = {"active", "activating", "reloading"}
LINKS = Path("/etc/systemd/system")


def systemctl(module: AnsibleModule, *arguments: str) -> str:
    """Run systemctl; what it refuses ends the task in its own words."""
    code, out, err = module.run_command(["systemctl", *arguments])
    if code:
        module.fail_json(msg=f"systemctl {' '.join(arguments)} failed: {(err or out).strip()}")
    return str(out)


def states(module: AnsibleModule, names: list[str]) -> list[dict[str, str]]:
    """Return what systemd knows about each unit."""
    out = systemctl(module, "show", "--property=LoadState,ActiveState,UnitFileState", *names)
    return [dict(line.split("=", 1) for line in block.splitlines()) for block in out.strip().split("\n\n")]


def due(unit: dict[str, Any], state: dict[str, str], changed: set[str]) -> list[str]:
    """Return the verbs that bring a unit where it is wanted."""
    if not unit["wanted"]:
        stop = ["stop"] if state["ActiveState"] in RUNNING else []
        # By its links, as the file that they lead to may be gone.
        enabled = any((wants / unit["name"]).is_symlink() for wants in LINKS.glob("*.wants"))
        return stop + (["disable"] if enabled else [])
    # Static units and those that only check mode would install have nothing to enable.
    verbs = ["enable"] if state["UnitFileState"] in {"disabled", ""} else []
    if state["ActiveState"] not in RUNNING:
        verbs.append("start")
    elif changed.intersection(unit["files"]):
        verbs.append("restart")
    return verbs


def apply(module: AnsibleModule, units: list[dict[str, Any]], changed: set[str]) -> list[str]:
    """Bring units where they are wanted and return what it took."""
    if not units:
        return []
    commands: dict[str, list[str]] = {}
    for unit, state in zip(units, states(module, [unit["name"] for unit in units]), strict=True):
        for verb in due(unit, state, changed):
            commands.setdefault(verb, []).append(unit["name"])
    for verb in ("stop", "disable", "enable", "start", "restart"):
        if verb in commands and not module.check_mode:
            systemctl(module, verb, *commands[verb])
    return [f"{verb} {name}" for verb, names in commands.items() for name in names]


def main() -> None:
    """Run the module."""
    unit_options = {
        "name": {"type": "str", "required": True},
        "wanted": {"type": "bool", "default": True},
        "files": {"type": "list", "elements": "path", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "required": True, "options": unit_options},
            "changed_files": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    changed = set(module.params["changed_files"])
    units = module.params["units"]
    # A unit whose file this run has removed stops in good order only while systemd still knows it.
    told = apply(module, [unit for unit in units if not unit["wanted"]], changed)
    if changed and not module.check_mode:
        systemctl(module, "daemon-reload")
    told += apply(module, [unit for unit in units if unit["wanted"]], changed)
    module.exit_json(changed=bool(told), commands=told)


if __name__ == "__main__":
    main()
