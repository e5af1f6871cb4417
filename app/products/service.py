"""What can be done with products; the one place that knows both the table and the cache."""

from typing import Any

from app.cache import Cache, Key, cached
from app.errors import NotFoundError
from app.products.repository import ProductRepository

NO_PRODUCT = "There is no product with this id."
PRODUCT = Key("product", "product_id")


class ProductService:
    """Products as the API offers them: JSON bytes in, JSON bytes out, cache kept true."""

    def __init__(self, repository: ProductRepository, cache: Cache) -> None:
        self._repository = repository
        self.cache = cache

    @cached(PRODUCT)
    async def _read(self, product_id: int) -> bytes | None:
        return await self._repository.read(product_id)

    async def read(self, product_id: int) -> bytes:
        """Return a product, from the cache if it is there."""
        body = await self._read(product_id)
        if body is None:
            raise NotFoundError(NO_PRODUCT)
        return body

    async def list(self, category: str | None, page: int, page_size: int) -> bytes:
        """Return a page of products."""
        return await self._repository.list(category, page, page_size)

    async def create(self, values: dict[str, Any]) -> tuple[int, bytes]:
        """Store a product."""
        return await self._repository.create(values)

    async def update(self, product_id: int, values: dict[str, Any]) -> bytes:
        """Change a product; the next read on any worker sees it."""
        body = await self._repository.update(product_id, values)
        if body is None:
            raise NotFoundError(NO_PRODUCT)
        await self.cache.invalidate(PRODUCT(product_id=product_id))
        return body

    async def delete(self, product_id: int) -> None:
        """Remove a product; the next read on any worker misses it."""
        if not await self._repository.delete(product_id):
            raise NotFoundError(NO_PRODUCT)
        await self.cache.invalidate(PRODUCT(product_id=product_id))
