"""Products in Postgres. Statements are compiled once and answer with JSON bytes."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import orjson
from sqlalchemy import bindparam, delete, insert, select, text, tuple_, update

from app.db import Database, Statement
from app.errors import MOST_FAULTS, ConflictError
from app.products.models import Product
from app.products.schemas import BulkItem, ListQuery

COLUMNS = (Product.id, Product.name, Product.category, Product.price, Product.stock)
FIELDS = ("name", "category", "price", "stock")

_THIS = Product.id == bindparam("id")
READ = Statement("products.read", select(*COLUMNS).where(_THIS))
LOCK = Statement("products.lock", select(*COLUMNS).where(_THIS).with_for_update())
CREATE = Statement(
    "products.create",
    insert(Product).values({name: bindparam(name) for name in FIELDS}).returning(*COLUMNS),
)
UPDATE = Statement(
    "products.update",
    update(Product)
    .where(_THIS)
    .values({name: bindparam(f"new_{name}") for name in FIELDS})
    .returning(*COLUMNS),
)
DELETE = Statement("products.delete", delete(Product).where(_THIS))

# In one order everywhere, so that two bulk writes cannot lock each other out.
LOCK_MANY = Statement(
    "products.lock_many",
    select(Product.id)
    .where(Product.id == text("ANY(CAST(:ids AS bigint[]))"))
    .order_by(Product.id)
    .with_for_update(),
)
_UNNESTED = """unnest(CAST(:ids AS bigint[]), CAST(:names AS text[]), CAST(:categories AS text[]),
  CAST(:prices AS numeric[]), CAST(:stocks AS int[])) WITH ORDINALITY
  AS item (id, name, category, price, stock, place)"""
CREATE_MANY = Statement(
    "products.create_many",
    text(
        f"""INSERT INTO products (name, category, price, stock)
        SELECT item.name, item.category, item.price, item.stock FROM {_UNNESTED}
        ORDER BY place RETURNING id"""  # noqa: S608  (only constants)
    ),
)
UPDATE_MANY = Statement(
    "products.update_many",
    text(
        f"""UPDATE products SET name = item.name, category = item.category, price = item.price,
        stock = item.stock FROM {_UNNESTED} WHERE products.id = item.id"""  # noqa: S608  (only constants)
    ),
)


@cache  # as many as there are sorts and sets of filters
def _list(sort: str, filters: tuple[str, ...], after: bool) -> Statement:
    conditions: dict[str, Any] = {
        "category": Product.category == bindparam("category"),
        "min_price": Product.price >= bindparam("min_price"),
        "max_price": Product.price <= bindparam("max_price"),
        "in_stock": (Product.stock > 0) == bindparam("in_stock"),
    }
    descending = sort.startswith("-")
    columns = [Product.price, Product.id] if sort.endswith("price") else [Product.id]
    query = select(*COLUMNS).where(*(conditions[name] for name in filters))
    if after:
        here = tuple_(*columns)
        there = tuple_(*(bindparam(f"after_{column.key}", type_=column.type) for column in columns))
        query = query.where(here < there if descending else here > there)
    query = query.order_by(*(column.desc() if descending else column for column in columns))
    limit, offset = (bindparam(name, type_=Product.id.type) for name in ("limit", "offset"))
    return Statement("products.list", query.limit(limit).offset(offset))


def to_json(value: Any) -> bytes:
    """Return JSON in which a decimal is a string, exact to the last digit."""
    return orjson.dumps(value, default=str)


Check = Callable[[bytes], None]


class ProductRepository:
    """Reads and writes products; knows nothing of HTTP or of the cache."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, product_id: int) -> bytes | None:
        """Return a product as JSON, or None."""
        rows = await self._database.fetch(READ, id=product_id)
        return to_json(dict(rows[0])) if rows else None

    async def page(self, query: ListQuery) -> bytes:
        """Return a page as JSON; one row more than asked tells whether there is a next one."""
        place = query.place()
        values = {name: getattr(query, name) for name in query.filters} | place
        rows = await self._database.fetch(
            _list(query.sort, query.filters, bool(place)),
            limit=query.page_size + 1,
            offset=(query.page - 1) * query.page_size,
            **values,
        )
        items = [dict(row) for row in rows[: query.page_size]]
        has_next = len(rows) > query.page_size
        return to_json(
            {
                "items": items,
                "page": query.page,
                "page_size": query.page_size,
                "has_next": has_next,
                "next": query.next_place(items[-1]["id"], items[-1]["price"]) if has_next else None,
            }
        )

    async def create(self, values: dict[str, Any]) -> tuple[int, bytes]:
        """Store a product; return its id and JSON."""
        rows = await self._database.write(CREATE, **values)
        return rows[0]["id"], to_json(dict(rows[0]))

    async def update(self, product_id: int, values: dict[str, Any], check: Check) -> bytes | None:
        """Change fields of a product that passes the check; return its JSON, or None if there is none."""

        async def change() -> bytes | None:
            rows = await self._database.fetch(LOCK, id=product_id)
            if not rows:
                return None
            stored = dict(rows[0])
            check(to_json(stored))
            fields = {f"new_{name}": values.get(name, stored[name]) for name in FIELDS}
            return to_json(dict((await self._database.write(UPDATE, id=product_id, **fields))[0]))

        return await self._database.transact("products.change", change)

    async def delete(self, product_id: int, check: Check) -> bool:
        """Remove a product that passes the check; return whether there was one."""

        async def remove() -> bool:
            rows = await self._database.fetch(LOCK, id=product_id)
            if rows:
                check(to_json(dict(rows[0])))
                await self._database.write(DELETE, id=product_id)
            return bool(rows)

        return await self._database.transact("products.remove", remove)

    async def save_many(self, items: Sequence[BulkItem]) -> tuple[int, list[int]]:
        """Create the items without an id and replace those with one, all or none, at driver speed.

        Return how many were new, and the ids of all in the order of the items.
        """
        new = [item for item in items if item.id is None]
        known = [item for item in items if item.id is not None]
        ids = [item.id for item in known]
        repeated = {product_id for product_id, times in Counter(ids).items() if times > 1}
        _refuse(items, repeated, "This product is here more than once.")

        async def save() -> list[int]:
            there = {row["id"] for row in await self._database.fetch(LOCK_MANY, ids=ids)}
            _refuse(items, set(ids) - there, "There is no product with this id.")
            await self._database.write(UPDATE_MANY, **_arrays(known))
            return sorted(row["id"] for row in await self._database.write(CREATE_MANY, **_arrays(new)))

        created = iter(await self._database.transact("products.save_many", save))
        return len(new), [next(created) if item.id is None else item.id for item in items]


def _refuse(items: Sequence[BulkItem], ids: set[int], detail: str) -> None:
    """Raise an error that names the items with these ids, if there are any."""
    numbers = [number for number, item in enumerate(items) if item.id in ids]
    if numbers:
        faults = [{"in": "body", "field": f"items.{number}.id", "detail": detail} for number in numbers]
        raise ConflictError("Nothing was stored; `errors` names the items.", errors=faults[:MOST_FAULTS])


def _arrays(items: Sequence[BulkItem]) -> dict[str, list[Any]]:
    return {
        "ids": [item.id for item in items],
        "names": [item.name for item in items],
        "categories": [item.category for item in items],
        "prices": [item.price for item in items],
        "stocks": [item.stock for item in items],
    }
