"""A callback that prints the probe variables of each play and host, which show their level of precedence."""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """Prints a JSON line per host at the start of a play."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "probe_variables"

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Print the variables that the play's tasks would get."""
        manager = play.get_variable_manager()
        for host in manager._inventory.get_hosts(play.hosts):
            values = manager.get_vars(play=play, host=host)
            probes = {name: str(value) for name, value in values.items() if name.startswith("probe_")}
            line = {"play": play.name, "host": host.name, "roles": bool(play.roles), "probes": probes}
            self._display.display("PROBE " + json.dumps(line))
