"""Create the index that finds what is out of stock, or is in stock, where few products are."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # Concurrently, as in the revision before; what an attempt left half-built goes first.
    with op.get_context().autocommit_block():
        op.drop_index(op.f("ix_products_stock_id"), "products", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            op.f("ix_products_stock_id"), "products", ["stock", "id"], postgresql_concurrently=True
        )


def downgrade() -> None:
    op.drop_index(op.f("ix_products_stock_id"), "products", if_exists=True)
