"""Build a release before anything changes, and return why it cannot be built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.module_utils.release_build import SPEC, Build
from ansible_collections.fastmetal.metal.plugins.module_utils.uv import (
    BuildError,
    FaultsError,
    UnreachableError,
    UvError,
)

DOCUMENTATION = r"""
name: release_judge
short_description: Return the faults of a release's dependencies
description:
  - Runs on the control node. Builds the release that a deploy would install, so that a fault of its lock is
    known before anything changes. The deploy finds the archives in the cache.
  - Returns C(faults), a list of sentences. A package index that does not answer is no fault; a deploy reports
    it.
author: Fastmetal
options:
  request: {type: dict, required: true, description: "The request of M(fastmetal.metal.release_artifact)."}
"""

EXAMPLES = r"""
- name: Build the release, to judge its dependencies
  fastmetal.metal.release_judge:
    request: "{{ __app_build_request }}"
  register: __app_judged
"""


class ActionModule(ActionBase):
    """Action `release_judge`."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Build the release."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {"request": {"type": "dict", "required": True, "options": SPEC}}
        )
        os.umask(0o022)
        faults: list[str] = []
        notes: list[str] = []
        try:
            build = Build(args["request"])
            if build.run():
                notes = build.notes()
        except UnreachableError:
            pass
        except FaultsError as error:
            faults = error.sentences
        except UvError as error:
            # The role judges the app's range of Python versions itself.
            known = error.is_unreachable or "does not satisfy Python" in " ".join(error.output.split())
            faults = [] if known else [f"{error}."]
        except BuildError as error:
            faults = [str(error)]
        except OSError as error:
            faults = [f"The release could not be built: {error}."]
        return result | {"changed": False, "faults": faults, "warnings": notes}
