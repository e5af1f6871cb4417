"""Install packages with one set of timeouts, and say in one sentence why that failed."""

from __future__ import annotations

import re
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.plugin_utils.commands import run_command

DOCUMENTATION = r"""
name: packages
short_description: Install packages, with one set of timeouts
description:
  - Runs ansible.builtin.apt with defaults for lock, retries, recommended packages and the age of the lists.
  - An unreachable mirror fails the task within 30 seconds.
  - Timeouts in the host's own apt.conf.d take precedence.
author: Fastmetal
options: {}
notes: [The options are those of ansible.builtin.apt.]
"""

EXAMPLES = r"""
- name: Install Redis
  fastmetal.metal.packages:
    name: redis-server
    # Started later, with the role's configuration.
    policy_rc_d: 101
"""

LOCK_SECONDS = 300  # Unattended upgrades may hold the lock for minutes.
DEFAULTS = {
    # Such as Prometheus' own node exporter, and collectors that run smartctl and apt from timers.
    "install_recommends": False,
    "cache_valid_time": 86400,
    "lock_timeout": LOCK_SECONDS,
    # apt itself retries; the module's retries would multiply the timeouts.
    "update_cache_retries": 1,
}
# apt reads this file before the host's own configuration.
APT_CONFIG = """\
Acquire::http::Timeout "10";
Acquire::https::Timeout "10";
Acquire::Retries "1";
"""
# A second update, only to learn the reason.
QUICK = "-o Acquire::http::Timeout=5 -o Acquire::https::Timeout=5 -o Acquire::Retries=0"
FETCH = re.compile(r"Failed to fetch \w+://([^/\s]+)\S*\s+(.+?)(?:, [WE]:|\n|$)")


def sentence(message: str) -> str:
    """Return an operator's sentence for a failure of apt, or the message itself."""
    if found := FETCH.search(message):
        mirror, reason = found[1], found[2].strip().rstrip(":.")
        return (
            f"The package mirror {mirror} cannot be used ({reason}): check the host's network, proxy and"
            " /etc/apt/sources.list.d, then run again."
        )
    if re.search(r"\block\b", message) and re.search(
        r"(?i)failed to lock|could not get lock|unable to acq", message
    ):
        return (
            f"Another program has held the lock of the package manager for {LOCK_SECONDS} s: wait until"
            " `ps -C apt-get,dpkg,unattended-upgr` shows none, then run again."
        )
    return message


class ActionModule(ActionBase):
    """Action `packages`."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Return the result of ansible.builtin.apt."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        folder = self._make_tmp_path()
        configuration = self._connection._shell.join_path(folder, "apt.conf")
        self._transfer_data(configuration, APT_CONFIG)
        self._fixup_perms2((folder, configuration), execute=False)
        self._task.environment = [*(self._task.environment or []), {"APT_CONFIG": configuration}]
        arguments = DEFAULTS | self._task.args
        found = self._execute_module("ansible.builtin.apt", arguments, task_vars=task_vars)
        # A failed update leaves lists that look fresh and lack packages.
        if found.get("failed") and str(found.get("msg")).startswith("No package matching"):
            arguments |= {"update_cache": True, "cache_valid_time": 0}
            found = self._execute_module("ansible.builtin.apt", arguments, task_vars=task_vars)
        if found.get("failed") and str(found.get("msg")).startswith("Failed to update apt cache"):
            # The module has no reason.
            reasons = run_command(self, f"apt-get -qq {QUICK} update 2>&1")
            found["msg"] += reasons["stdout"]
        result |= found
        self._remove_tmp_path(folder, force=True)
        if result.get("failed"):
            result["msg"] = sentence(str(result.get("msg", "")))
        return result
