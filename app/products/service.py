"""What can be done with products; the one place that knows both the table and the cache."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import HTTPException

from app.cache import Cache, Key, cached
from app.idempotency import Idempotency, Outcome
from app.products.repository import NO_PRODUCT, Check, ProductRepository, to_json
from app.products.schemas import BulkInput, ListQuery, ProductChange, ProductInput

PATH = "/api/v1/products"
# Give it another name with every change of what an answer says: releases overlap on one cache.
PRODUCT = Key("product", "product_id")
T = TypeVar("T")


class ProductService:
    """Products as the API offers them: JSON bytes out; a write is seen by the next read on any worker."""

    def __init__(self, repository: ProductRepository, cache: Cache, idempotency: Idempotency) -> None:
        self._repository = repository
        self._idempotency = idempotency
        self._changes: set[asyncio.Task[Any]] = set()
        self.cache = cache

    @cached(PRODUCT)
    async def _read(self, product_id: int) -> bytes | None:
        return await self._repository.read(product_id)

    async def read(self, product_id: int) -> bytes:
        body = await self._read(product_id)
        if body is None:
            raise HTTPException(404, NO_PRODUCT)
        return body

    async def page(self, query: ListQuery) -> bytes:
        return await self._repository.page(query)

    async def create(self, owner: str, key: str, product: ProductInput) -> Outcome:
        """Store a product; with an idempotency key, once, however often it is asked for."""

        async def create() -> Outcome:
            product_id, body = await self._repository.create(product.model_dump())
            return Outcome(f"{PATH}/{product_id}", body)

        return await self._idempotency.once(owner, key, product, create)

    async def save_many(self, owner: str, key: str, bulk: BulkInput) -> Outcome:
        """Create and replace products, all or none; with an idempotency key, once."""

        async def save() -> Outcome:
            created, ids = await self._repository.save_many(bulk.items)
            return Outcome("", to_json({"created": created, "updated": len(ids) - created, "ids": ids}))

        known = [item.id for item in bulk.items if item.id is not None]
        return await self._change(self._idempotency.once(owner, key, bulk, save), *known)

    async def update(self, product_id: int, product: ProductInput | ProductChange, check: Check) -> bytes:
        # A field that a change leaves out is None, which no product has.
        values = product.model_dump(exclude_none=True)
        return await self._change(self._repository.update(product_id, values, check), product_id)

    async def delete(self, product_id: int, check: Check) -> None:
        await self._change(self._repository.delete(product_id, check), product_id)

    async def finish(self) -> None:
        """Return when the writes whose callers have left are done."""
        while self._changes:
            await asyncio.wait(self._changes)

    async def _change(self, write: Coroutine[Any, Any, T], *ids: int) -> T:
        """Write, then remove these products from the cache, to the end: whoever asked for it may have left.

        They are removed however it ended, as a connection that is lost on the way may have committed.
        """

        async def change() -> T:
            try:
                return await write
            finally:
                await self.cache.invalidate(*map(PRODUCT, ids))

        task = asyncio.create_task(change())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        # Should nobody wait any more, nobody else would look at a failure.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(task)
