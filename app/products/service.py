"""What can be done with products; the one place that knows both the table and the cache."""

from app.cache import Cache, Key, cached
from app.errors import NotFoundError
from app.idempotency import Idempotency, Outcome
from app.products.repository import Check, ProductRepository, to_json
from app.products.schemas import BulkInput, ListQuery, ProductChange, ProductInput

PATH = "/api/v1/products"
NO_PRODUCT = "There is no product with this id."
PRODUCT = Key("product", "product_id")


class ProductService:
    """Products as the API offers them: JSON bytes out, cache kept true."""

    def __init__(self, repository: ProductRepository, cache: Cache, idempotency: Idempotency) -> None:
        self._repository = repository
        self._idempotency = idempotency
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

    async def page(self, query: ListQuery) -> bytes:
        """Return a page of products."""
        return await self._repository.page(query)

    async def create(self, owner: str, key: str, product: ProductInput) -> Outcome:
        """Store a product; with an idempotency key, once, however often it is asked for."""

        async def create() -> Outcome:
            product_id, body = await self._repository.create(product.model_dump())
            return Outcome(f"{PATH}/{product_id}", body)

        if not key:
            return await create()
        return await self._idempotency.once(
            owner, key, b"create" + product.model_dump_json().encode(), create
        )

    async def save_many(self, owner: str, key: str, bulk: BulkInput) -> Outcome:
        """Create and replace products, all or none."""

        async def save() -> Outcome:
            created, ids = await self._repository.save_many(bulk.items)
            return Outcome("", to_json({"created": created, "updated": len(ids) - created, "ids": ids}))

        if not key:
            outcome = await save()
        else:
            outcome = await self._idempotency.once(
                owner, key, b"bulk" + bulk.model_dump_json().encode(), save
            )
        known = [item.id for item in bulk.items if item.id is not None]
        await self.cache.invalidate(*(PRODUCT(product_id=product_id) for product_id in known))
        return outcome

    async def update(self, product_id: int, product: ProductInput | ProductChange, check: Check) -> bytes:
        """Change a product; the next read on any worker sees it."""
        body = await self._repository.update(product_id, product.values(), check)
        if body is None:
            raise NotFoundError(NO_PRODUCT)
        await self.cache.invalidate(PRODUCT(product_id=product_id))
        return body

    async def delete(self, product_id: int, check: Check) -> None:
        """Remove a product; the next read on any worker misses it."""
        if not await self._repository.delete(product_id, check):
            raise NotFoundError(NO_PRODUCT)
        await self.cache.invalidate(PRODUCT(product_id=product_id))
