"""Notify receivers of a release: webhooks, Slack and mail."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.plugin_utils.receivers import EVENTS, notify

DOCUMENTATION = r"""
name: release_notify
short_description: Notify receivers of a release
description:
  - Sends one message to each receiver, from the control node and all at once.
  - A receiver that fails is a warning. It never stops a release.
author: Fastmetal
options:
  receivers:
    type: list
    elements: dict
    required: true
    description:
      - Each has a C(name) and a C(kind), C(webhook) (the default), C(slack) or C(mail).
      - C(events) limits what is sent.
      - C(webhook) posts the facts as JSON to C(url), with C(headers).
      - C(slack) posts C({"text": …}) to C(url).
      - C(mail) sends to the list C(to), C(from), by C(smarthost) (C(host:port)), with C(auth_username) and
        C(auth_password); C(require_tls) is true by default.
  event: {type: str, required: true, choices: [started, finished, rolled_back], description: "What happened."}
  facts:
    type: dict
    required: true
    description:
      - What receivers get, besides event, time and seconds. C(service), C(environment), C(action), C(by),
        C(from), C(hosts), C(release) and C(previous) are required, for C(rolled_back) also C(reason).
  began: {type: float, default: 0, description: "Time of the start, as this action has returned it then."}
"""

EXAMPLES = r"""
- name: Notify of the start
  fastmetal.metal.release_notify:
    receivers: [{name: team, kind: slack, url: "https://chat.example.com/hook"}]
    event: started
    facts:
      service: shop
      environment: production
      action: restart
      release: 1.4.0-0123456789ab
      previous: 1.4.0-0123456789ab
      hosts: [web1]
      by: alice
      from: laptop
"""


class ActionModule(ActionBase):
    """Action `release_notify`."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send the event to all receivers that want it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "receivers": {"type": "list", "elements": "dict", "required": True, "no_log": True},
                "event": {"type": "str", "required": True, "choices": EVENTS},
                "facts": {"type": "dict", "required": True},
                "began": {"type": "float", "default": 0},
            }
        )
        began = args["began"] or time.time()
        facts = {**args["facts"], "seconds": round(time.time() - began)}
        reasons = notify(args["receivers"], args["event"], facts)
        failed = {name: reason for name, reason in reasons.items() if reason}
        warnings = [f"The receiver {name} was not notified: {reason}." for name, reason in failed.items()]
        sent = sorted(reasons.keys() - failed)
        return result | {"changed": False, "began": began, "sent": sent, "warnings": warnings}
