"""A migration that changes the columns under the old release's prepared statements."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.release.fleet import Fleet
from tests.release.variant import WIDENED

pytestmark = pytest.mark.timeout(300)
# Changes and writes run in transactions, where a statement that has become invalid cannot be prepared again.
MIX = "ppwrPplpWppr"
RATE = 60


def test_a_widening_migration_loses_no_request(fleet: Fleet) -> None:
    """An added and a widened column; the old release serves on while and after they change."""
    revision = fleet.sql("SELECT version_num FROM alembic_version")
    given = fleet.build(WIDENED)
    try:
        with fleet.load("widen", RATE, MIX) as load:
            time.sleep(2)  # every pooled connection has prepared its statements
            fleet.deploy_version(Path(given["app_source"]).name, **given)
            fleet.rollback()
        assert fleet.sql("SELECT version_num FROM alembic_version") != revision
        assert not load.report.failures, load.report.failures[:5]
    finally:
        fleet.sql("ALTER TABLE products DROP COLUMN IF EXISTS proof")
        fleet.sql("ALTER TABLE products ALTER COLUMN name TYPE varchar(200)")
        fleet.sql(f"UPDATE alembic_version SET version_num = '{revision}'")
