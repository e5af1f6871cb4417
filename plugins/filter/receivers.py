"""Judge the receivers of a release's events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.fastmetal.metal.plugins.plugin_utils.receivers import receiver_faults

DOCUMENTATION = r"""
name: receiver_faults
short_description: Find receivers of release_notify that cannot work
description: Returns a sentence for each fault. The sentences show no values, as a URL may be a secret.
author: Fastmetal
positional: variable
options:
  _input: {description: The receivers by name., type: dict, required: true}
  variable: {description: The name of the variable that has them., type: str, required: true}
"""

EXAMPLES = r"""
__app_receiver_faults: "{{ app_notify | fastmetal.metal.receiver_faults('release_notify') }}"
"""

RETURN = r"""
_value: {description: The sentences., type: list, elements: str}
"""


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"receiver_faults": receiver_faults}
