#!/usr/bin/python3
"""Upgrade the packages of a host, and report what is held and what still runs old files."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_upgrade
short_description: Upgrade the packages of a host
description:
  - Does what C(apt-get upgrade --with-new-pkgs) does, without the held packages.
  - The package lists are updated before, also in check mode.
  - In check mode it only reports.
  - Packages that C(apt-mark hold) holds are held as well. No package is removed.
  - The preferences of C(/etc/apt/preferences) and C(/etc/apt/preferences.d) apply.
author: Fastmetal
options:
  held: {type: list, elements: str, default: [], description: "Regular expressions of packages to hold."}
  upgrade: {type: bool, default: true, description: "False only reports."}
"""

RETURN = r"""
upgraded: {type: list, returned: always, description: "The packages, as C(name old -> new)."}
held: {type: list, returned: always, description: "Packages with a newer version that are left alone."}
reboot: {type: list, returned: always, description: "Reasons to reboot."}
outdated: {type: list, returned: always, description: "Units whose processes use files that were replaced."}
running: {type: list, returned: always, description: "Services that run."}
failed: {type: list, returned: always, description: "Services that have failed."}
"""

EXAMPLES = r"""
- name: Upgrade the packages but for those of Postgres
  fastmetal.metal.host_upgrade:
    held: [postgresql-.*]
"""

PREFERENCES = Path("/etc/apt/preferences")
# Unattended upgrades may hold apt's locks for minutes.
LOCK_SECONDS = 300
APT = (
    *("apt-get", "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"),
    *("-o", f"DPkg::Lock::Timeout={LOCK_SECONDS}"),
)
# A restart of these does not replace the running program, or ends logins.
NEEDS_REBOOT = {"init.scope", "dbus.service", "systemd-logind.service"}
# They end with their logins.
LOGIN = re.compile(r"user@|.*\.scope$")
INSTALL = re.compile(r"^Inst (\S+)(?: \[([^\]]+)\])? \((\S+) ", re.MULTILINE)


def planned(simulated: str) -> dict[str, str]:
    """Return {package: "old -> new"} from the output of `apt-get --simulate`; no old one is "none"."""
    return {name: f"{old or 'none'} -> {new}" for name, old, new in INSTALL.findall(simulated)}


def pins(installed: Mapping[str, str], patterns: Iterable[str], file: Path) -> str:
    """Return apt preferences that keep the installed versions of the packages that match a pattern.

    file: The host's own preferences, which follow: Dir::Etc::preferences can name a single file.
    """
    expressions = [
        re.compile(pattern) for pattern in patterns
    ]  # As unattended-upgrades does: from the start.
    own = file.read_text(encoding="utf-8") if file.exists() else ""
    held = "".join(
        f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n"
        for name, version in sorted(installed.items())
        if any(expression.match(name) for expression in expressions)
    )
    return held + own


def outdated_units(proc: Path = Path("/proc")) -> list[str]:
    """Return the units with a process that has mapped a file of /usr which was replaced."""
    units = set()
    for process in proc.glob("[0-9]*"):
        try:
            maps = (process / "maps").read_text(errors="replace")
            cgroups = (process / "cgroup").read_text()
        except OSError:  # It has ended.
            continue
        if re.search(r" /(usr|lib)\S* \(deleted\)$", maps, re.MULTILINE):
            units.update(re.findall(r"/([^/\n]+\.(?:service|scope))(?=/|$)", cgroups, re.MULTILINE)[-1:])
    return sorted(units)


def newest_kernel(boot: Path = Path("/boot")) -> str:
    """Return the release of the newest installed kernel, empty without one, as in a container."""

    def order(release: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"[.+-]", release)]

    releases = [path.name.removeprefix("vmlinuz-") for path in boot.glob("vmlinuz-*")]
    return max(releases, key=order, default="")


def reboot_reasons(running: str, kernel: str, outdated: Iterable[str], run: Path = Path("/run")) -> list[str]:
    """Return why a host should reboot."""
    reasons = []
    if kernel and kernel != running:
        reasons.append(f"the kernel {kernel} is installed, and {running} runs")
    if (run / "reboot-required").exists():
        listed = run / "reboot-required.pkgs"
        names = sorted(set(listed.read_text().split())) if listed.exists() else []
        reasons.append(f"a package asks for it{': ' + ', '.join(names) if names else ''}")
    if needs := sorted(NEEDS_REBOOT & set(outdated)):
        reasons.append(f"{', '.join(needs)} still runs replaced files")
    return reasons


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "held": {"type": "list", "elements": "str", "default": []},
            "upgrade": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}

    def output(*command: str) -> str:
        return str(module.run_command(list(command), check_rc=True, environ_update=environment)[1])

    def services(state: str) -> list[str]:
        listed = output(
            "systemctl", "list-units", "--type=service", f"--state={state}", "--plain", "--no-legend"
        )
        return [line.split()[0] for line in listed.splitlines()]

    if module.params["upgrade"]:
        # In check mode, too: it changes a cache only, and an old one would hide upgrades.
        update = ["apt-get", "-qq", "--error-on=any", "update"]
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            status, _, problem = module.run_command(update, environ_update=environment)
            if "Could not get lock" not in problem or time.monotonic() > deadline:
                break
            time.sleep(5)
        if status:
            module.fail_json(msg=f"The package lists cannot be updated: {problem.strip()}")
    form = r"${db:Status-Abbrev}${Package} ${Version}\n"
    rows = [line.split() for line in output("dpkg-query", "--show", f"--showformat={form}").splitlines()]
    installed = {row[1]: row[2] for row in rows if row[0] in ("ii", "hi") and len(row) == 3}
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as scratch:
        # Readable for apt's own account.
        Path(scratch).chmod(0o755)
        preferences = Path(scratch, "preferences")
        preferences.write_text(pins(installed, module.params["held"], PREFERENCES), encoding="utf-8")
        own = ("-o", f"Dir::Etc::preferences={preferences}")
        upgrade = ("upgrade", "--with-new-pkgs", "--yes")
        changes = planned(output(*APT, *own, "--simulate", *upgrade)) if module.params["upgrade"] else {}
        marked = set(output("apt-mark", "showhold").split())
        every = (
            planned(output(*APT, "--simulate", "--ignore-hold", *upgrade)) if module.params["upgrade"] else {}
        )
        if changes and not module.check_mode:
            output(*APT, *own, *upgrade)
    outdated = outdated_units()
    units = {state: services(state) for state in ("running", "failed")}
    held = {name: what for name, what in every.items() if name not in changes or name in marked}
    module.exit_json(
        changed=bool(changes),
        upgraded=[f"{name} {what}" for name, what in sorted(changes.items())],
        held=[f"{name} {what}" for name, what in sorted(held.items())],
        outdated=[unit for unit in outdated if unit not in NEEDS_REBOOT and not LOGIN.match(unit)],
        reboot=reboot_reasons(os.uname().release, newest_kernel(), outdated),
        **units,
    )


if __name__ == "__main__":
    main()
