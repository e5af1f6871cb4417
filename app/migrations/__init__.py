"""Database migrations. A script's file name starts with its revision, a number of four digits.

By these names a serving worker knows what to expect without importing Alembic, which costs memory and
start-up time. A new script is written by hand: a test holds the schema and the mapped classes in step.
"""

from pathlib import Path


def known_revisions() -> list[str]:
    """Return every revision this release has a script for, in order."""
    return sorted(script.name[:4] for script in Path(__file__).parent.glob("versions/[0-9]*.py"))


def head_revision() -> str:
    """Return the revision that this release's code expects."""
    return known_revisions()[-1]
