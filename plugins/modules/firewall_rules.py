#!/usr/bin/python3
"""Load the rules of the firewall, which roll back unless the action firewall_confirm keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: firewall_rules
short_description: Load the rules of the firewall, with a rollback
description:
  - Loads rules that differ from the confirmed ones, or are not loaded, in one transaction.
  - The host rolls back to the confirmed rules unless the action C(firewall_confirm) follows in time.
  - Check mode validates the rules and shows the difference.
author: Fastmetal
options:
  content: {type: str, required: true, description: "The rules, for nft; empty removes them."}
  path: {type: path, required: true, description: "The file with the confirmed rules."}
  program: {type: path, required: true, description: "The program that the role firewall installs."}
"""

RETURN = r"""
trial: {type: bool, returned: always, description: "Whether rules wait for firewall_confirm."}
"""

EXAMPLES = r"""
- name: Load the rules, unconfirmed
  fastmetal.metal.firewall_rules:
    content: "{{ lookup('ansible.builtin.template', 'rules.nft.j2') }}"
    path: /etc/fastmetal/firewall.nft
    program: /usr/local/sbin/fastmetal-firewall
"""

LOADED = Path("/run/fastmetal-firewall/loaded.nft")
TABLE = ("list", "table", "inet", "fastmetal")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "content": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "program": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    content, path, program = module.params["content"], Path(module.params["path"]), module.params["program"]
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    nft = module.get_bin_path("nft")  # Missing in check mode on a bare host.
    loaded = bool(nft) and LOADED.is_file() and module.run_command([nft, *TABLE])[0] == 0
    result: dict[str, Any] = {
        "changed": before != content or bool(content) != loaded,
        "trial": False,
        "diff": {
            "before": before,
            "after": content,
            "before_header": str(path),
            "after_header": str(path),
        },
    }
    if not result["changed"]:
        module.exit_json(**result)
    if content and nft:
        code, _, error = module.run_command([nft, "--check", "--file", "-"], data=content, binary_data=True)
        if code:
            module.fail_json(msg=f"The rules are invalid, nothing was changed: {error.strip()}")
    if not module.check_mode:
        verb = "try" if content else "stop"
        if content or Path(program).is_file():
            code, _, error = module.run_command([program, verb], data=content, binary_data=True)
            if code:
                module.fail_json(msg=f"The rules were not loaded, the previous ones stay: {error.strip()}")
        if not content:
            path.unlink(missing_ok=True)
        result["trial"] = bool(content)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
