"""Operations on products: combines the repository, the cache and idempotency keys."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import HTTPException

from app.cache import Cache, Key, cached
from app.idempotency import Idempotency, Outcome
from app.products.repository import PRODUCT_NOT_FOUND, Check, ProductRepository, to_json
from app.products.schemas import BulkInput, ListQuery, ProductChange, ProductInput

PATH = "/products"
# Rename the prefix if the JSON changes: old and new releases share the cache during a rollout.
PRODUCT = Key("product", "product_id")
T = TypeVar("T")


class ProductService:
    """Products as JSON bytes; a read after a write sees that write, on every worker."""

    def __init__(
        self, repository: ProductRepository, cache: Cache, idempotency: Idempotency, api_prefix: str
    ) -> None:
        self._repository = repository
        self._path = api_prefix + PATH
        self._idempotency = idempotency
        self._writes: set[asyncio.Task[Any]] = set()
        self.cache = cache

    @cached(PRODUCT)
    async def _read(self, product_id: int) -> bytes | None:
        return await self._repository.read(product_id)

    async def read(self, product_id: int) -> bytes:
        body = await self._read(product_id)
        if body is None:
            raise HTTPException(404, PRODUCT_NOT_FOUND)
        return body

    async def page(self, query: ListQuery) -> bytes:
        return await self._repository.page(query)

    async def create(self, owner: str, key: str, product: ProductInput) -> Outcome:
        """Create a product; with an idempotency key, at most once."""

        async def create() -> Outcome:
            product_id, body = await self._repository.create(product.model_dump())
            return Outcome(f"{self._path}/{product_id}", body)

        return await self._idempotency.once(owner, key, product, create)

    async def save_many(self, owner: str, key: str, bulk: BulkInput) -> Outcome:
        """Create and replace products, all or none; with an idempotency key, at most once."""

        async def save() -> Outcome:
            created, ids = await self._repository.save_many(bulk.items)
            return Outcome("", to_json({"created": created, "updated": len(ids) - created, "ids": ids}))

        replaced = [item.id for item in bulk.items if item.id is not None]
        return await self._write(self._idempotency.once(owner, key, bulk, save), *replaced)

    async def update(self, product_id: int, product: ProductInput | ProductChange, check: Check) -> bytes:
        # An omitted field of a ProductChange is None; no stored field is.
        values = product.model_dump(exclude_none=True)
        return await self._write(self._repository.update(product_id, values, check), product_id)

    async def delete(self, product_id: int, check: Check) -> None:
        await self._write(self._repository.delete(product_id, check), product_id)

    async def clear_cache(self, product_id: int) -> None:
        """Remove a product from the cache, although it has not changed."""
        await self.cache.invalidate(PRODUCT(product_id))

    async def finish_writes(self) -> None:
        """Wait for writes whose clients have disconnected."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def _write(self, write: Coroutine[Any, Any, T], *ids: int) -> T:
        """Write and remove these products from the cache; completes even if the client disconnects.

        Removes them after an error too: the commit of a lost connection may have succeeded.
        """

        async def write_and_invalidate() -> T:
            succeeded = False
            try:
                result = await write
                succeeded = True
            finally:
                await self.cache.invalidate(*map(PRODUCT, ids), wait=succeeded)
            return result

        task = asyncio.create_task(write_and_invalidate())
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        # If the client has disconnected, this retrieves the exception.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(task)
