"""Print the plan of an `alembic upgrade`: the database's revision, then each pending revision with its SQL.

SERVICE-release pipes this program into the release's own Python, in the service's sandbox. The arguments
are those of `alembic`. It prints only what follows MARK.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from io import StringIO
from typing import Any

from alembic.config import CommandLine, Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

MARK = "-- Plan of fastmetal"


def pending(config: Config, script: ScriptDirectory, target: str) -> tuple[tuple[str, ...], list[Any]]:
    """Return the database's revisions and the steps from there to the target."""
    heads: tuple[str, ...] = ()
    steps: list[Any] = []

    def look(present: Any, _context: Any) -> list[Any]:
        nonlocal heads
        heads = tuple(present or ())
        steps.extend(script._upgrade_revs(target, present))  # as alembic's own upgrade does
        return []

    with EnvironmentContext(config, script, fn=look, dont_mutate=True):
        script.run_env()
    return heads, steps


def sql(config: Config, script: ScriptDirectory, target: str, start: tuple[str, ...]) -> str:
    """Return the SQL from the database's revisions to the target."""
    config.output_buffer = StringIO()

    def upgrade(present: Any, _context: Any) -> Any:
        return script._upgrade_revs(target, present)

    options = {"starting_rev": start or "base", "destination_rev": target}
    environment = EnvironmentContext(config, script, fn=upgrade, as_sql=True, **options)
    # env.py takes the path of a real migration: its other path often lacks the database's URL.
    vars(environment)["is_offline_mode"] = lambda: False
    with environment:
        script.run_env()
    return config.output_buffer.getvalue()


def header(step: Any) -> str:
    """Return the line that announces a step, as alembic's SQL has it."""
    return f"-- Running {step.short_log}"


def attributes(step: Any) -> list[str]:
    """Return what a revision says of itself, as comments."""
    module = step.revision.module
    lines = [f"-- allow: {word}" for word in sorted(getattr(module, "allow", ()))]
    return lines + [
        f"-- not {word}" for word in ("compatible", "reversible") if not getattr(module, word, True)
    ]


def plan(config: Config, target: str) -> list[str]:
    """Return the lines of the plan."""
    script = ScriptDirectory.from_config(config)
    heads, steps = pending(config, script, target)
    lines = [f"-- Database at {', '.join(heads) or 'base'}"]
    if not steps:
        return lines
    # A revision that reads the database has no SQL beforehand, and can fail in any way here.
    try:
        text = sql(config, script, target, heads).splitlines()
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        lines.append(f"-- No SQL: {type(error).__name__}: {reason}")
        text = [header(step) for step in steps]
    more = {header(step): attributes(step) for step in steps}
    for line in text:
        lines += [line, *more.get(line, ())]
    return lines


class Plan(CommandLine):
    """alembic's command line, which finds the configuration, with another command."""

    def run_cmd(self, config: Config, options: Namespace) -> None:
        """Print the plan of the command `upgrade`."""
        sys.stdout.write("\n".join(["", MARK, *plan(config, options.revision), ""]))


if __name__ == "__main__":
    Plan(prog="alembic").main(sys.argv[1:])
