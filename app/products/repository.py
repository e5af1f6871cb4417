"""Products in Postgres. Hot statements are compiled once and answer with JSON bytes."""

from typing import Any

import orjson
from sqlalchemy import Executable, bindparam, insert, select

from app.db import Database, Statement
from app.products.models import Product

COLUMNS = (Product.id, Product.name, Product.category, Product.price, Product.stock)


def _page(*conditions: Any) -> Executable:
    query = select(*COLUMNS).where(*conditions).order_by(Product.id)
    return query.limit(bindparam("limit", type_=Product.id.type)).offset(
        bindparam("offset", type_=Product.id.type)
    )


READ = Statement("products.read", select(*COLUMNS).where(Product.id == bindparam("id")))
LIST = Statement("products.list", _page())
LIST_CATEGORY = Statement("products.list_category", _page(Product.category == bindparam("category")))
CREATE = Statement(
    "products.create",
    insert(Product)
    .values({name: bindparam(name) for name in ("name", "category", "price", "stock")})
    .returning(*COLUMNS),
)


def to_json(value: Any) -> bytes:
    """Return JSON in which a decimal is a string, exact to the last digit."""
    return orjson.dumps(value, default=str)


class ProductRepository:
    """Reads and writes products; knows nothing of HTTP or of the cache."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, product_id: int) -> bytes | None:
        """Return a product as JSON, or None."""
        rows = await self._database.fetch(READ, id=product_id)
        return to_json(dict(rows[0])) if rows else None

    async def list(self, category: str | None, page: int, page_size: int) -> bytes:
        """Return a page as JSON; one row more than asked tells whether there is a next one."""
        statement = LIST if category is None else LIST_CATEGORY
        rows = await self._database.fetch(
            statement, category=category, limit=page_size + 1, offset=(page - 1) * page_size
        )
        items = [dict(row) for row in rows[:page_size]]
        return to_json(
            {"items": items, "page": page, "page_size": page_size, "has_next": len(rows) > page_size}
        )

    async def create(self, values: dict[str, Any]) -> tuple[int, bytes]:
        """Store a product; return its id and JSON."""
        rows = await self._database.write(CREATE, **values)
        return rows[0]["id"], to_json(dict(rows[0]))

    async def update(self, product_id: int, values: dict[str, Any]) -> bytes | None:
        """Change fields of a product; return its JSON, or None if there is none."""
        async with self._database.session("products.update") as session:
            product = await session.get(Product, product_id, with_for_update=True)
            if product is None:
                return None
            for name, value in values.items():
                setattr(product, name, value)
            await session.flush()
            await session.refresh(product)
        return to_json({column.key: getattr(product, column.key) for column in COLUMNS})

    async def delete(self, product_id: int) -> bool:
        """Remove a product; return whether there was one."""
        async with self._database.session("products.delete") as session:
            product = await session.get(Product, product_id, with_for_update=True)
            if product is None:
                return False
            await session.delete(product)
        return True
