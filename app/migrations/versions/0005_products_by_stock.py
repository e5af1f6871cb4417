"""Create the index for the filter in_stock."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # CONCURRENTLY, as in 0004; an invalid index of a failed attempt is dropped first.
    with op.get_context().autocommit_block():
        op.drop_index(op.f("ix_products_stock_id"), "products", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            op.f("ix_products_stock_id"), "products", ["stock", "id"], postgresql_concurrently=True
        )


def downgrade() -> None:
    op.drop_index(op.f("ix_products_stock_id"), "products", if_exists=True)
