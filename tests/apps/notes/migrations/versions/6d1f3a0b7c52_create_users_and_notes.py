"""Create users and notes"""

import sqlalchemy as sa
from alembic import op

revision = "6d1f3a0b7c52"
down_revision = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA accounts")
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("username", sa.Text, nullable=False, unique=True),
        sa.Column("password", sa.Text, nullable=False),
        schema="accounts",
    )
    op.create_table(
        "notes",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("user_id", sa.BigInteger, sa.ForeignKey("accounts.users.id"), nullable=False, index=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("notes")
    op.drop_table("users", schema="accounts")
    op.execute("DROP SCHEMA accounts")
