"""Database migrations: Alembic scripts in versions/, named NNNN_description.py with revision NNNN.

The file names let a worker know the expected revision without importing Alembic, which costs memory and
start-up time. Scripts are written by hand; a test compares the schema with the mapped classes.
"""

from pathlib import Path


def known_revisions() -> list[str]:
    """Return the revisions of this release's scripts, in order."""
    return sorted(script.name[:4] for script in Path(__file__).parent.glob("versions/[0-9]*.py"))


def head_revision() -> str:
    """Return the newest revision, which this release's code expects."""
    return known_revisions()[-1]
