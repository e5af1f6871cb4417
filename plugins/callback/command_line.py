"""Judge the command line of ansible-playbook: inventory, vault password, limit, tags and -e.

Ansible itself only warns of an inventory that does not exist, and skips a play without hosts, with status 0.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.inventory.manager import split_host_pattern
from ansible.plugins.callback import CallbackBase
from ansible_collections.fastmetal.metal.plugins.plugin_utils.specs import convert, load_specs

DOCUMENTATION = r"""
name: command_line
type: aggregate
short_description: Judge the command line before the first play
description:
  - Refuses an inventory that does not exist, a wrong vault password, and an unknown name in C(--limit).
  - Refuses a playbook none of whose plays has a host.
  - Refuses C(--tags) and C(--start-at-task) for the playbooks of this checkout.
  - Their tasks have no tags, and each relies on those before it.
  - Takes the words of C(-e "command=…") of run.yml as one command.
  - Converts flags and numbers that C(-e name=value) passes as strings to the types of the argument specs.
  - ansible.cfg enables it.
author: Fastmetal
options: {}
"""


CHECKOUT = Path(__file__).resolve().parents[2]
INSTEAD = "run the playbook of one function instead, such as playbooks/edge.yml"


def skip_refusal(playbook: Path, tags: list[str], start_at_task: str | None) -> str:
    """Return why a playbook does not run with options that leave out tasks, or an empty string."""
    if playbook.parent not in (CHECKOUT, CHECKOUT / "playbooks"):
        return ""
    if tags not in ([], ["all"]):
        return f"--tags {','.join(tags)}: the tasks of {playbook.name} have no tags; {INSTEAD}."
    if start_at_task:
        return f"--start-at-task: the tasks of {playbook.name} need those before them; {INSTEAD}."
    return ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the most similar name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


class CallbackModule(CallbackBase):
    """Callback `command_line`."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "fastmetal.metal.command_line"
    CALLBACK_NEEDS_ENABLED = True

    def refuse(self, sentence: str) -> NoReturn:
        """End the run with a sentence; an exception would only be a warning."""
        self._display.error(sentence, wrap_text=False)
        raise SystemExit(1)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Refuse names that do not exist, and convert the variables, before the first play."""
        self.path = Path(playbook._file_name)
        tags, start = list(context.CLIARGS.get("tags") or []), context.CLIARGS.get("start_at_task")
        if reason := skip_refusal(self.path.resolve(), tags, start):
            self.refuse(reason)
        self.patterns: list[str] = []
        self.matched = 0
        variables = playbook.get_plays()[0].get_variable_manager()
        self.inventory = variables._inventory
        self.sources = context.CLIARGS.get("inventory") or constants.DEFAULT_HOST_LIST
        for source in self.sources:
            self.check_source(source)
        self.check_vault_password(variables)
        for pattern in split_host_pattern(context.CLIARGS.get("subset") or ""):
            name = pattern.lstrip("!&")
            if name and not name.startswith("@") and not self.inventory.get_hosts(name, ignore_limits=True):
                known = [*self.inventory.groups, *self.inventory.hosts]
                self.refuse(f"--limit has {name}, which is no host or group.{did_you_mean(name, known)}")
        if self.path.name == "run.yml":
            self.keep_command(variables.extra_vars)
        texts = {name: value for name, value in variables.extra_vars.items() if isinstance(value, str)}
        if texts:
            options = (entry for role in load_specs().values() for entry in role.items())
            kinds = {name: option["type"] for name, option in options}
            for name, value in texts.items():
                variables.extra_vars[name] = convert(kinds.get(name, "str"), value)

    def keep_command(self, given: dict[str, Any]) -> None:
        """Take the words of `-e "command=…"` as one command; Ansible takes them for further variables."""
        for text in context.CLIARGS.get("extra_vars") or ():
            name, _, command = text.partition("=")
            if name.strip() == "command":
                quoted = command.startswith(("'", '"'))
                given.update(command=shlex.split(command)[0] if quoted else command)

    def check_source(self, source: str) -> None:
        """Refuse a path that does not exist; a list of hosts has a comma."""
        path = Path(source)
        if "," in source or path.exists():
            return
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        self.refuse(f"There is no inventory {source}.{did_you_mean(path.name, siblings)}")

    def check_vault_password(self, variables: Any) -> None:
        """Refuse a wrong password by the name of its file; Ansible's own message has none."""
        try:
            variables.get_vars(host=self.inventory.get_host(next(iter(self.inventory.hosts), "localhost")))
        except AnsibleError as error:
            if "Decryption failed" not in str(error):
                return  # Ansible reports it itself.
            paths = map(Path, self.sources)
            folders = [path if path.is_dir() else path.parent for path in paths]
            files = " or ".join(os.path.relpath(folder / ".vault-password") for folder in folders)
            where = "$FASTMETAL_VAULT_PASSWORD" if os.environ.get("FASTMETAL_VAULT_PASSWORD") else files
            self.refuse(f"The password in {where} does not decrypt the secrets: correct it.")

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Count the play as one with hosts."""
        self.patterns += play.hosts
        self.matched += 1

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Correct the count: Ansible announces each play, also one without hosts."""
        self.matched -= 1

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Refuse a playbook that did nothing."""
        del stats
        if self.matched or not self.patterns:
            return
        if not self.inventory.hosts:
            self.refuse(f"{self.path.name} did nothing: the inventory has no hosts.")
        limit = context.CLIARGS.get("subset")
        scope = f"--limit {limit}" if limit else "the inventory"
        known = set(self.inventory.groups) - {"all", "ungrouped"}
        hints = [did_you_mean(name, known) for name in self.patterns if name not in known]
        groups = " or ".join(dict.fromkeys(self.patterns))
        self.refuse(
            f"{self.path.name} did nothing: no host of {scope} is in {groups}.{max(hints, default='')}"
        )
