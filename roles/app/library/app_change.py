#!/usr/bin/python
"""Run the host's own SERVICE-release command, and report in its words."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: app_change
short_description: Change or ask which release of the service a host runs
description:
  - A step of a release, as the command that the app role installs on the host carries it out.
author: Fastmetal
options:
  service: {type: str, required: true, description: "The name of the service."}
  step:
    description: What to do.
    type: str
    required: true
    choices: [status, lock, migrate, switch, confirm, return, unlock]
  release: {type: str, description: "The release, for the steps that name one."}
  about: {type: dict, default: {}, description: "Who changes what, for the lock and the history."}
  options: {type: dict, default: {}, description: "The command's further options; true means a flag."}
"""

RETURN = r"""
release: {type: str, returned: "after a switch", description: "The release that serves now."}
"""

EXAMPLES = r"""
- name: Put the release in the live one's place
  app_change:
    service: api
    step: switch
    release: 1.0-0123456789ab
    options: {confirm-within: 120}
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "service": {"type": "str", "required": True},
            "step": {
                "type": "str",
                "required": True,
                "choices": ["status", "lock", "migrate", "switch", "confirm", "return", "unlock"],
            },
            "release": {"type": "str"},
            "about": {"type": "dict", "default": {}},
            "options": {"type": "dict", "default": {}},
        },
        supports_check_mode=False,
    )
    step, release = module.params["step"], module.params["release"]
    command = [f"/usr/local/sbin/{module.params['service']}-release", step]
    command += [release] if release else []
    command += ["--about", json.dumps(module.params["about"])] if step != "status" else []
    for name, value in module.params["options"].items():
        if value is True:
            command.append(f"--{name}")
        elif value is not False:
            command.append(f"--{name}={value}")
    if not Path(command[0]).exists():
        module.fail_json(msg=f"{command[0]} is not on this host: run site.yml first")
    status, out, err = module.run_command(command)
    if status:
        module.fail_json(msg=err.strip() or out.strip())
    module.exit_json(**{"changed": False, **json.loads(out)})


if __name__ == "__main__":
    main()
