#!/usr/bin/python
"""Bring the units of a service's jobs, and whether they run, to what is wanted."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: app_jobs
short_description: Install, enable and start the units of a service's jobs
description:
  - Jobs that are no longer wanted are stopped and removed; workers whose unit changed are restarted.
  - Every unit is checked by C(systemd-analyze verify) before the first one is written.
author: Fastmetal
options:
  name: {type: str, required: true, description: "The service, which the units are named after."}
  units: {type: str, required: true, description: "The units, each after a line C(== FILE NAME)."}
"""

RETURN = r"""
units: {type: list, returned: always, description: "The units that were written, removed or started."}
"""

EXAMPLES = r"""
- name: Run the jobs
  app_jobs:
    name: api
    units: "{{ lookup('ansible.builtin.template', 'jobs.j2') }}"
"""

UNITS = Path("/etc/systemd/system")


def read(unit: Path) -> str:
    return unit.read_text(encoding="utf-8") if unit.exists() else ""


def is_worker(text: str) -> bool:
    return "\nType=exec\n" in text


class Jobs:
    """The wanted units, and those on the host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.name: str = module.params["name"]
        parts = re.split(r"^== (\S+)\n", module.params["units"], flags=re.MULTILINE)
        self.wanted = dict(zip(parts[1::2], parts[2::2], strict=True))
        found = [*UNITS.glob(f"{self.name}-job-*.service"), *UNITS.glob(f"{self.name}-job-*.timer")]
        self.stale = sorted(path.name for path in found if path.name not in self.wanted)

    def systemctl(self, *arguments: str) -> str:
        code, out, err = self.module.run_command(["systemctl", *arguments])
        if code:
            self.module.fail_json(msg=f"systemctl {' '.join(arguments)} failed: {(err or out).strip()}")
        return str(out)

    def written(self) -> dict[str, str]:
        """The units that are not on the host as they should be."""
        return {name: text for name, text in self.wanted.items() if read(UNITS / name) != text}

    def idle(self) -> list[str]:
        """The units that should be enabled and active, and are not."""
        startable = [name for name, text in self.wanted.items() if "[Install]" in text]
        if not startable:
            return []
        shown = self.systemctl("show", "--property=Id,ActiveState,UnitFileState", *startable)
        states = [dict(line.split("=", 1) for line in part.splitlines()) for part in shown.split("\n\n")]
        return [
            state["Id"]
            for state in states
            # A worker that keeps falling is systemd's to start again, and status.yml's to show.
            if state["ActiveState"] not in ("active", "activating") or state["UnitFileState"] != "enabled"
        ]

    def verify(self) -> None:
        """End the task when systemd would not accept a unit."""
        with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as directory:
            for name, text in self.wanted.items():
                (Path(directory) / name).write_text(text, encoding="utf-8")
            paths = [f"{directory}/{name}" for name in self.wanted]
            code, _, err = self.module.run_command(["systemd-analyze", "verify", *paths])
        if code or "job-" in err:
            said = err.replace(f"{directory}/", "").strip().splitlines()
            # It speaks of units that these depend on, too.
            own = [line for line in said if "job-" in line]
            self.module.fail_json(msg=f"app_jobs makes a bad unit, nothing was written: {(own or said)[0]}")

    def apply(self, written: dict[str, str]) -> None:
        scheduled = [
            name for name in written if is_worker(read(UNITS / name)) and not is_worker(written[name])
        ]
        if ended := [*self.stale, *scheduled]:
            self.systemctl("disable", "--now", "--quiet", *ended)
        for name in self.stale:
            (UNITS / name).unlink()
        for name, text in written.items():
            (UNITS / name).write_text(text, encoding="utf-8")
        if self.stale or written:
            self.systemctl("daemon-reload")
        if changed := [name for name, text in written.items() if name.endswith(".timer") or is_worker(text)]:
            self.systemctl("try-restart", *changed)
        if idle := self.idle():
            self.systemctl("enable", "--now", "--quiet", *idle)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "units": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        jobs = Jobs(module)
        written = jobs.written()
        changed = sorted({*written, *jobs.stale, *jobs.idle()})
        if written:
            jobs.verify()
        if changed and not module.check_mode:
            jobs.apply(written)
    except OSError as error:
        module.fail_json(msg=f"The jobs' units could not be written: {error}.")
    module.exit_json(changed=bool(changed), units=changed)


if __name__ == "__main__":
    main()
