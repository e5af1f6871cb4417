"""Source trees of the service that differ in their version and, on request, in one fault."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab import ROOT

FACTORY = '''

from app.proof import Proof  # noqa: E402

_build = create_app


def create_app() -> FastAPI:
    """The service in the proof's wrapper."""
    app = _build()
    app.add_middleware(Proof)
    return app
'''
REVISION = '''
"""Add a column.{note}"""

from alembic import op
from sqlalchemy import Column, Integer, String

revision = "{revision}"
down_revision = "{previous}"
branch_labels = None
depends_on = None
allow = {allow}


def upgrade() -> None:
    op.add_column("products", Column("proof", Integer))
    {statement}


def downgrade() -> None:
    op.drop_column("products", "proof")
'''
WIDENED = "migration widens a column"
MIGRATIONS = {
    "migration fails": 'op.execute("SELECT 1 / 0")',
    "migration waits behind a held lock": "",
    WIDENED: 'op.alter_column("products", "name", type_=String(400))',
}


def make(folder: Path, version: str, fault: str = "") -> Path:
    """Write the tree of a version and return it."""
    tree = folder / version
    shutil.copytree(ROOT / "app", tree / "app", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements-app.txt"):
        shutil.copy(ROOT / name, tree)
    (tree / "app/__init__.py").write_text(f'"""The service under test."""\n\n__version__ = "{version}"\n')
    proof = (ROOT / "tests/release/proof.py").read_text().replace('FAULT = ""', f'FAULT = "{fault}"')
    (tree / "app/proof.py").write_text(proof)
    with (tree / "app/main.py").open("a") as main:
        main.write(FACTORY)
    if fault in MIGRATIONS:
        versions = tree / "app/migrations/versions"
        previous = max(path.name for path in versions.glob("[0-9]*.py"))[:4]
        revision = f"{int(previous) + 1:04}"
        text = REVISION.format(
            note="",
            revision=revision,
            previous=previous,
            allow={"rewrite"} if fault == WIDENED else "()",
            statement=MIGRATIONS[fault],
        ).strip()
        (versions / f"{revision}_proof.py").write_text(f"{text}\n")
    return tree
