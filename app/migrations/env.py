"""Runs migrations on the connection that app.migrations.run opened and locked."""

import logging
from typing import Any, cast

from alembic import context
from alembic.runtime.migration import MigrationInfo

from app import idempotency as _idempotency  # noqa: F401  (these register the tables)
from app.db import Base
from app.products import models as _products  # noqa: F401
from app.users import models as _users  # noqa: F401

logger = logging.getLogger("app.migrations")


def _report(*, step: MigrationInfo, **_: Any) -> None:
    logger.info("Migrated", extra={"revision": step.up_revision_id, "upgrade": step.is_upgrade})


# None: the statements are printed.
connection = context.config.attributes.get("connection")
context.configure(
    connection=connection,
    dialect_name="postgresql",
    target_metadata=Base.metadata,
    transaction_per_migration=True,
    compare_server_default=True,
    on_version_apply=cast("Any", _report),
)
with context.begin_transaction():
    context.run_migrations()
