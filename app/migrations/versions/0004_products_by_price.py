"""Create the indexes for lists sorted by price.

CONCURRENTLY does not block writers. It runs outside a transaction, where nothing else could be rolled back,
so it has its own revision. An invalid index of a failed attempt is dropped first.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

INDEXES = {
    "ix_products_price_id": ["price", "id"],
    "ix_products_category_price_id": ["category", "price", "id"],
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, columns in INDEXES.items():
            op.drop_index(op.f(name), "products", if_exists=True, postgresql_concurrently=True)
            op.create_index(op.f(name), "products", columns, postgresql_concurrently=True)


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(op.f(name), "products", if_exists=True)
