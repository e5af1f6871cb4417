"""Run commands on a host from an action, apart from what the host's profile prints or sets."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.shell.clean import PREFIX

# What comes before it is the profile's output.
MARK = "--- fastmetal ---"


def run_command(action: ActionBase, command: str, in_data: bytes = b"\n") -> dict[str, Any]:
    """Return rc, stdout and stderr of a shell command; raises AnsibleConnectionFailure.

    With input SSH allocates no terminal, which would mix errors with answers.
    """
    marked = f"cd /; {PREFIX} echo '{MARK}'; echo '{MARK}' >&2; {command}"
    done: dict[str, Any] = action._low_level_execute_command(marked, in_data=in_data)
    own = {stream: done[stream].partition(f"{MARK}\n") for stream in ("stdout", "stderr")}
    # Without the mark the shell did not get that far, and its words say why.
    return done | {stream: after if mark else before for stream, (before, mark, after) in own.items()}
