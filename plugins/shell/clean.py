"""Run modules in the same environment on every host, apart from its profile and sudo."""

from __future__ import annotations

from typing import Any

from ansible.plugins.shell.sh import ShellModule as PosixShell

DOCUMENTATION = """
name: clean
short_description: POSIX shell whose commands do not depend on the caller's environment
description:
  - Sets what modules inherit from the login, from C(sudo) and, on the control node, from the caller.
  - Addresses of the host itself are asked without a proxy; a proxy for packages stays.
author: Fastmetal
extends_documentation_fragment: [shell_common]
"""

# A hardened umask would keep services from their own files. A login's PATH may lack the programs of root.
PREFIX = (
    'umask 022; : "${no_proxy:=$NO_PROXY}";'
    ' export LC_ALL=C.UTF-8 PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"'
    ' no_proxy="localhost,127.0.0.1,::1${no_proxy:+,$no_proxy}";'
)


class ShellModule(PosixShell):
    """Shell `clean`."""

    # Only chosen by its name.
    COMPATIBLE_SHELLS: frozenset[str] = frozenset()

    def env_prefix(self, **kwargs: Any) -> str:
        """Return what precedes each module's command."""
        return f"{PREFIX} {super().env_prefix(**kwargs)}"
