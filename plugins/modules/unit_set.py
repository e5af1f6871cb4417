#!/usr/bin/python3
"""Enable, start and restart several systemd units in one task."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fastmetal.metal.plugins.module_utils.systemd import SystemctlError, show, systemctl

DOCUMENTATION = r"""
module: unit_set
short_description: Enable, start and restart several systemd units in one task
description:
  - Does in one round trip what one systemd_service task per unit does.
  - A unit restarts if O(changed_files) contains one of its files. M(fastmetal.metal.file_set) returns them.
  - After an interrupted run, a unit restarts if systemd has not read its files since they changed.
  - A unit whose file in /etc/systemd/system is in O(changed_files) and was removed is stopped and disabled.
author: Fastmetal
options:
  units:
    description: The units.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {type: str, required: true, description: "Name with its type, such as C(nginx.service)."}
      enabled: {type: bool, default: true, description: "True: enabled and running; false: neither."}
      files: {type: list, elements: path, default: [], description: "Files that the unit reads at its start."}
      triggered:
        description:
          - Another unit, such as a timer, starts this one, so it is left as it is.
          - If it is still enabled from before, it is stopped and disabled.
        type: bool
        default: false
  changed_files:
    description: Files that this run has changed.
    type: list
    elements: path
    default: []
  purge:
    description: Stop and disable units that match one of these glob patterns and are not in O(units).
    type: list
    elements: str
    default: []
"""

RETURN = r"""
commands: {type: list, returned: always, description: "The systemctl commands, without daemon-reload."}
"""

EXAMPLES = r"""
- name: Run the exporters
  fastmetal.metal.unit_set:
    units:
      - name: prometheus-node-exporter.service
        files: [/etc/default/prometheus-node-exporter]
    changed_files: "{{ __files.paths }}"
"""

PROPERTIES = ("ActiveState", "UnitFileState")
RUNNING = {"active", "activating", "reloading"}
UNITS = Path("/etc/systemd/system")


def unlisted_units(patterns: list[str], units: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return as units to disable those that match a pattern, are loaded or enabled, and are not listed."""
    if not patterns:
        return []
    known = {unit["name"] for unit in units}
    loaded = systemctl("list-units", "--all", "--plain", "--no-legend", *patterns).splitlines()
    # An interrupted run may have removed a file but not the link that enabled it.
    enabled = (link.name for link in UNITS.glob("*.wants/*"))
    found = {line.split()[0] for line in loaded}
    found |= {name for name in enabled if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    return [
        {"name": name, "enabled": False, "files": [], "triggered": False} for name in sorted(found - known)
    ]


def removed_units(changed: set[str], units: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return as units to disable those whose file was removed and that are not among the units."""
    known = {unit["name"] for unit in units}
    gone = (path for path in map(Path, sorted(changed)) if path.parent == UNITS and not path.exists())
    return [
        {"name": path.name, "enabled": False, "files": [], "triggered": False}
        for path in gone
        if path.name not in known
    ]


def outdated_units(names: list[str]) -> set[str]:
    """Return the names of the units that systemd has not read since their files changed."""
    states = show(("NeedDaemonReload",), *names) if names else []
    return {name for name, state in zip(names, states, strict=True) if state["NeedDaemonReload"] == "yes"}


def must_stop(unit: dict[str, Any]) -> bool:
    """Return whether a unit must not be enabled."""
    return unit["triggered"] or not unit["enabled"]


def commands_for(unit: dict[str, Any], state: dict[str, str], *, changed: bool) -> list[str]:
    """Return the systemctl commands that bring a unit into its desired state."""
    if must_stop(unit):
        stop = ["stop"] if state["ActiveState"] in RUNNING else []
        # The unit's file may be gone, so systemd's own answer would not tell.
        enabled = any((wants / unit["name"]).is_symlink() for wants in UNITS.glob("*.wants"))
        if unit["triggered"] and not enabled:
            return []
        return stop + (["disable"] if enabled else [])
    # Static units have nothing to enable; in check mode neither have units that are not installed yet.
    commands = ["enable"] if state["UnitFileState"] in {"disabled", ""} else []
    if state["ActiveState"] not in RUNNING:
        commands.append("start")
    elif changed:
        commands.append("restart")
    return commands


def apply(units: list[dict[str, Any]], changed: set[str], *, check_mode: bool) -> list[str]:
    """Bring units into their desired states and return the commands that this takes.

    changed: Paths of changed files and names of units that systemd has to read again.
    """
    if not units:
        return []
    states = show(PROPERTIES, *(unit["name"] for unit in units))
    commands: dict[str, list[str]] = {}
    for unit, state in zip(units, states, strict=True):
        for command in commands_for(
            unit, state, changed=not changed.isdisjoint([unit["name"], *unit["files"]])
        ):
            commands.setdefault(command, []).append(unit["name"])
    for command in ("stop", "disable", "enable", "start", "restart"):
        if command in commands and not check_mode:
            systemctl(command, *commands[command])
    return [f"{command} {name}" for command, names in commands.items() for name in names]


def main() -> None:
    """Run the module."""
    unit_options = {
        "name": {"type": "str", "required": True},
        "enabled": {"type": "bool", "default": True},
        "files": {"type": "list", "elements": "path", "default": []},
        "triggered": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "required": True, "options": unit_options},
            "changed_files": {"type": "list", "elements": "path", "default": []},
            "purge": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    changed = set(module.params["changed_files"])
    units = module.params["units"]
    check_mode = bool(module.check_mode)
    try:
        units = units + unlisted_units(module.params["purge"], units)
        units += removed_units(changed, units)
        # Before the reload: systemd stops a unit cleanly only while it still knows the unit's removed file.
        commands = apply([unit for unit in units if must_stop(unit)], changed, check_mode=check_mode)
        changed |= outdated_units([unit["name"] for unit in units if not must_stop(unit)])
        if changed and not check_mode:
            systemctl("daemon-reload")
        commands += apply([unit for unit in units if not must_stop(unit)], changed, check_mode=check_mode)
    except (OSError, SystemctlError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(commands), commands=commands)


if __name__ == "__main__":
    main()
