"""Runs migrations on the connection that app.migrations.run opened and locked."""

import logging
from typing import Any, cast

from alembic import context

logger = logging.getLogger("app.migrations")


def _report(**about: Any) -> None:
    step = about["step"]
    logger.info("Migrated", extra={"revision": step.up_revision_id, "upgrade": step.is_upgrade})


context.configure(
    connection=context.config.attributes.get("connection"),  # without one, the statements are printed
    dialect_name="postgresql",
    transaction_per_migration=True,
    on_version_apply=cast("Any", _report),
)
with context.begin_transaction():
    context.run_migrations()
