"""SQL for products; rows are returned as JSON bytes."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import orjson
from fastapi import HTTPException

from app.db import Database
from app.errors import MAX_ERRORS, ConflictError
from app.products.schemas import BulkItem, ListQuery

PRODUCT_NOT_FOUND = "There is no product with this id."
# In the planner's units: about a million rows, or 0.1 s.
MAX_COUNT_COST = 25_000
FIELDS = ("name", "category", "price", "stock")

# A price is selected as text: exact, and cheaper than a Decimal.
READ = "SELECT id, name, category, price::text, stock FROM products WHERE id = $1"
LOCK = READ + " FOR UPDATE"
CREATE = """
INSERT INTO products (name, category, price, stock) VALUES ($1, $2, $3, $4)
RETURNING id, name, category, price::text, stock"""
UPDATE = """
UPDATE products SET name = $2, category = $3, price = $4, stock = $5 WHERE id = $1
RETURNING id, name, category, price::text, stock"""
DELETE = "DELETE FROM products WHERE id = $1"

# Lock in one order, so that two bulk writes cannot deadlock.
LOCK_MANY = "SELECT id FROM products WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE"
CREATE_MANY = """
INSERT INTO products (name, category, price, stock) SELECT name, category, price, stock
FROM unnest($1::text[], $2::text[], $3::numeric[], $4::int[]) WITH ORDINALITY
  AS item (name, category, price, stock, position) ORDER BY position RETURNING id"""
UPDATE_MANY = """
UPDATE products SET name = item.name, category = item.category, price = item.price, stock = item.stock
FROM unnest($1::text[], $2::text[], $3::numeric[], $4::int[], $5::bigint[])
  AS item (name, category, price, stock, id) WHERE products.id = item.id"""


class Statement:
    """SQL with the arguments of its placeholders."""

    def __init__(self, query: ListQuery) -> None:
        """Begin with the conditions of a list's filters."""
        self.arguments: list[Any] = []
        filters = {"category =": query.category, "price >=": query.min_price, "price <=": query.max_price}
        self.conditions = [
            f"{name} {self.bind(value)}" for name, value in filters.items() if value is not None
        ]
        if query.in_stock is not None:
            self.conditions.append("stock > 0" if query.in_stock else "stock = 0")

    def bind(self, value: Any) -> str:
        """Add an argument and return its placeholder."""
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    @property
    def where(self) -> str:
        """The WHERE clause."""
        return f"WHERE {' AND '.join(self.conditions)}" if self.conditions else ""


def list_statement(query: ListQuery) -> tuple[str, list[Any]]:
    """Return the SQL and arguments of a page, with one extra row to detect a next page."""
    statement = Statement(query)
    bind = statement.bind
    keys = ("price", "id") if query.sort.endswith("price") else ("id",)
    direction, sign = ("DESC", "<") if query.sort.startswith("-") else ("ASC", ">")
    if cursor := query.cursor():
        bounds = ", ".join(bind(cursor[key]) for key in keys)
        statement.conditions.append(f"({', '.join(keys)}) {sign} ({bounds})")
    order = ", ".join(f"products.{key} {direction}" for key in keys)
    window = f"LIMIT {bind(query.page_size + 1)} OFFSET {bind((query.page - 1) * query.page_size)}"
    columns = "SELECT id, name, category, price::text, stock FROM products"
    return f"{columns} {statement.where} ORDER BY {order} {window}", statement.arguments


def to_json(value: Any) -> bytes:
    """Return rows, or a structure of rows, as JSON."""
    return orjson.dumps(value, default=dict)


Check = Callable[[bytes], None]


class ProductRepository:
    """Reads and writes products; independent of requests and of the cache."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, product_id: int) -> bytes | None:
        rows = await self._database.fetch("products.read", READ, product_id)
        return to_json(rows[0]) if rows else None

    async def page(self, query: ListQuery) -> bytes:
        statement, arguments = list_statement(query)
        rows = await self._database.fetch("products.list", statement, *arguments)
        items = rows[: query.page_size]
        has_next = len(rows) > query.page_size
        page = {
            "items": items,
            "page": query.page,
            "page_size": query.page_size,
            "has_next": has_next,
            "next": query.next_cursor(items[-1]["id"], items[-1]["price"]) if has_next else None,
        }
        return to_json(page | {"total": await self._total(query)} if query.total else page)

    async def _total(self, query: ListQuery) -> dict[str, Any]:
        """Return the number of rows on all pages, counted only if the planner finds that cheap."""
        statement = Statement(query)
        matching = f"FROM products {statement.where}"
        explain = f"EXPLAIN (FORMAT JSON) SELECT {matching}"
        ((explained,),) = await self._database.fetch("products.estimate", explain, *statement.arguments)
        plan = explained[0]["Plan"]
        if query.total == "estimated" or plan["Total Cost"] > MAX_COUNT_COST:
            return {"value": plan["Plan Rows"], "kind": "estimated"}
        count = f"SELECT count(*) {matching}"
        ((value,),) = await self._database.fetch("products.count", count, *statement.arguments)
        return {"value": value, "kind": "exact"}

    async def create(self, values: dict[str, Any]) -> tuple[int, bytes]:
        """Insert a product; return its id and JSON."""
        (row,) = await self._database.execute("products.create", CREATE, *(values[name] for name in FIELDS))
        return row["id"], to_json(row)

    async def update(self, product_id: int, values: dict[str, Any], check: Check) -> bytes:
        """Update fields of a product if `check` accepts its stored JSON; return the new JSON."""

        async def change() -> bytes:
            stored = await self._lock(product_id, check)
            fields = [values.get(name, stored[name]) for name in FIELDS]
            (row,) = await self._database.execute("products.update", UPDATE, product_id, *fields)
            return to_json(row)

        return await self._database.transact("products.change", change)

    async def delete(self, product_id: int, check: Check) -> None:
        """Delete a product if `check` accepts its stored JSON."""

        async def remove() -> None:
            await self._lock(product_id, check)
            await self._database.execute("products.delete", DELETE, product_id)

        await self._database.transact("products.change", remove)

    async def _lock(self, product_id: int, check: Check) -> asyncpg.Record:
        """Lock a product's row for the transaction, check it, and return it."""
        rows = await self._database.fetch("products.lock", LOCK, product_id)
        if not rows:
            raise HTTPException(404, PRODUCT_NOT_FOUND)
        check(to_json(rows[0]))
        return rows[0]

    async def save_many(self, items: Sequence[BulkItem]) -> tuple[int, list[int]]:
        """Insert the items without an id and update those with one, all or none.

        Return the number of new items, and all ids in the order of the items.
        """
        new = [item for item in items if item.id is None]
        existing = [item for item in items if item.id is not None]
        ids = [item.id for item in existing]
        repeated = {product_id for product_id, times in Counter(ids).items() if times > 1}
        _refuse(items, repeated, "The request contains this product more than once.")

        async def save() -> list[int]:
            locked = await self._database.fetch("products.lock_many", LOCK_MANY, ids)
            _refuse(items, set(ids) - {row["id"] for row in locked}, PRODUCT_NOT_FOUND)
            await self._database.execute("products.update_many", UPDATE_MANY, *_columns(existing), ids)
            rows = await self._database.execute("products.create_many", CREATE_MANY, *_columns(new))
            return sorted(row["id"] for row in rows)

        created = iter(await self._database.transact("products.save_many", save))
        return len(new), [next(created) if item.id is None else item.id for item in items]


def _refuse(items: Sequence[BulkItem], ids: set[int], detail: str) -> None:
    """Raise a ConflictError that lists the items with these ids, if any."""
    numbers = [number for number, item in enumerate(items) if item.id in ids]
    if numbers:
        shown = numbers[:MAX_ERRORS]
        errors = [{"in": "body", "field": f"items.{number}.id", "detail": detail} for number in shown]
        summary = f"Nothing was stored. `errors` lists {len(shown)} of {len(numbers)} items."
        raise ConflictError(summary, errors)


def _columns(items: Sequence[BulkItem]) -> list[list[Any]]:
    return [[getattr(item, name) for item in items] for name in FIELDS]
