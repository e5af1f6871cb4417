"""What a migration would do, as SQL, for whoever must judge it before it happens.

A script says more about itself where needed: `allow = {"drop"}` vouches for a statement that locks, rewrites
or removes; `reversible = False` and `compatible = False` (the code before it cannot work with the schema
after it) close the way back to earlier releases.
"""

from io import StringIO

from alembic import command
from alembic.script import ScriptDirectory

from app.migrations.run import alembic_config


def plan(current: str | None) -> str:
    """Return the statements from a revision to this release's, each script's words before its own."""
    config = alembic_config()
    config.output_buffer = StringIO()
    command.upgrade(config, f"{current or 'base'}:head", sql=True)
    scripts = ScriptDirectory.from_config(config)
    lines = []
    for line in config.output_buffer.getvalue().splitlines():
        lines.append(line)
        if line.startswith("-- Running upgrade "):
            module = scripts.get_revision(line.split()[-1]).module
            lines += [f"-- allow: {word}" for word in sorted(getattr(module, "allow", ()))]
            claims = ("compatible", "reversible")
            lines += [f"-- not {word}" for word in claims if not getattr(module, word, True)]
    return "\n".join(lines) + "\n"
