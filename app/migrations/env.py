"""Alembic environment: runs migrations on the connection that app.migrations.run has locked."""

import logging
from typing import Any, cast

from alembic import context

logger = logging.getLogger("app.migrations")


def _log_step(**event: Any) -> None:
    step = event["step"]
    logger.info("Migrated", extra={"revision": step.up_revision_id, "upgrade": step.is_upgrade})


context.configure(
    connection=context.config.attributes.get("connection"),  # without a connection, Alembic prints the SQL
    dialect_name="postgresql",
    transaction_per_migration=True,
    on_version_apply=cast("Any", _log_step),
)
with context.begin_transaction():
    context.run_migrations()
