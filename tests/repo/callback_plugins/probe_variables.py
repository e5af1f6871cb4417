"""Callback that prints, for each play and host, which level of precedence each probe variable comes from."""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """Prints one JSON line for each host of a play, as the play starts."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "probe_variables"

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Ask for the variables exactly as the play's tasks would."""
        manager = play.get_variable_manager()
        for host in manager._inventory.get_hosts(play.hosts):
            values = manager.get_vars(play=play, host=host)
            probes = {name: str(value) for name, value in values.items() if name.startswith("probe_")}
            line = {"play": play.name, "host": host.name, "roles": bool(play.roles), "probes": probes}
            self._display.display("PROBE " + json.dumps(line))
