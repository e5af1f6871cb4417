"""What lives as long as a worker: pools are opened here, after the fork, and closed in order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from app.cache import Cache
from app.db import Database
from app.health import Health
from app.idempotency import Idempotency
from app.metrics import Metrics
from app.migrations import known_revisions
from app.products.repository import ProductRepository
from app.products.service import ProductService
from app.redis_link import RedisLink
from app.settings import Settings
from app.users.repository import UserRepository
from app.users.service import UserService

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 5


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Build the worker's services from the settings; nothing is connected until it is needed."""
    settings: Settings = app.state.settings
    metrics: Metrics = app.state.metrics
    database = Database(settings, metrics)
    redis = RedisLink(settings, metrics)
    cache = Cache(redis, settings.cache_ttl)
    app.state.idempotency = Idempotency(database)
    app.state.products = ProductService(ProductRepository(database), cache, app.state.idempotency)
    app.state.users = UserService(UserRepository(database), app.state.tokens)
    app.state.health = Health(database, redis, known_revisions())

    def sample() -> None:
        metrics.sample_process()
        database.sample_pool()

    app.state.sample = sample
    sampler = asyncio.create_task(_repeat(sample))
    logger.info("Started", extra={"release": settings.release, "environment": settings.environment.value})
    try:
        yield
    finally:
        sampler.cancel()
        with suppress(asyncio.CancelledError):
            await sampler
        await redis.close()
        await database.close()
        logger.info("Stopped")


async def _repeat(sample: Callable[[], None]) -> None:
    while True:
        sample()
        await asyncio.sleep(SAMPLE_SECONDS)
