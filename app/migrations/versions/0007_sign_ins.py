"""Create the tables of sign-ins, and take from the serving role what it does not need."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# Of every role but the owner, which default privileges gave all four on each table.
CHANGE = """
DO $$
DECLARE
  change record;
BEGIN
  FOR change IN
    SELECT DISTINCT relname, privileges, grantee::regrole AS role
    FROM (VALUES
      ('users', 'INSERT, UPDATE, DELETE'),
      ('alembic_version', 'INSERT, UPDATE, DELETE'),
      ('cache_epochs', 'DELETE')) AS taken (name, privileges)
    JOIN pg_class ON pg_class.oid = to_regclass(name), aclexplode(relacl)
    WHERE grantee NOT IN (0, relowner) AND privilege_type = 'SELECT' {condition}
  LOOP
    EXECUTE format('{verb} %s ON %I {preposition} %s', change.privileges, change.relname, change.role);
  END LOOP;
END
$$"""


# Not of a role that only reads, such as one for reports.
WRITERS = "AND has_table_privilege(grantee, to_regclass('products'), 'INSERT')"


def upgrade() -> None:
    op.create_table(
        "sign_in_attempts",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("known", sa.Boolean(), nullable=False),
        sa.Column("failed_at", sa.ARRAY(sa.DateTime(timezone=True)), nullable=False),
        sa.PrimaryKeyConstraint("name", "known", name=op.f("pk_sign_in_attempts")),
        prefixes=["UNLOGGED"],
    )
    op.create_table(
        "sign_in_networks",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("name", "network", name=op.f("pk_sign_in_networks")),
    )
    op.execute(CHANGE.format(verb="REVOKE", preposition="FROM", condition=""))


def downgrade() -> None:
    op.execute(CHANGE.format(verb="GRANT", preposition="TO", condition=WRITERS))
    op.drop_table("sign_in_networks")
    op.drop_table("sign_in_attempts")
