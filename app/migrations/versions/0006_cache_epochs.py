"""Create the cache_epochs table."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "cache_epochs",
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column(
            "suspended_until", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("prefix", name=op.f("pk_cache_epochs")),
    )


def downgrade() -> None:
    op.drop_table("cache_epochs")
