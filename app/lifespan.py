"""Objects that live as long as a worker: created after the fork, closed in reverse order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from app.cache import Cache
from app.db import Database
from app.epoch import Epoch, background_database
from app.error_tracking import error_tracking
from app.health import Health
from app.idempotency import Idempotency
from app.metrics import Metrics
from app.monitor import monitor_database
from app.products.repository import ProductRepository
from app.products.service import ProductService
from app.redis_link import RedisLink
from app.settings import Settings
from app.users.attempts import SignInAttempts
from app.users.repository import UserRepository
from app.users.service import UserService

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 5
SHUTDOWN_CHECK_SECONDS = 0.25


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Create the worker's services from the settings; connections open at first use."""
    state = app.state
    settings: Settings = state.settings
    metrics: Metrics = state.metrics
    async with (
        error_tracking(settings),
        aclosing(Database(settings, metrics)) as database,
        aclosing(background_database(settings, metrics)) as background,
        aclosing(RedisLink(settings, metrics)) as redis,
        aclosing(Cache(redis, Epoch(background, redis.prefix), settings.cache_ttl)) as cache,
    ):
        state.database = database
        state.idempotency = idempotency = Idempotency(database)
        state.products = ProductService(ProductRepository(database), cache, idempotency, settings.api_prefix)
        state.users = UserService(UserRepository(database), SignInAttempts(database), state.tokens, metrics)
        state.health = Health(database, cache, settings.external_endpoints)
        tasks = [
            asyncio.create_task(_repeat(metrics.sample_process, SAMPLE_SECONDS)),
            asyncio.create_task(_repeat(database.sample_pool, SAMPLE_SECONDS)),
            asyncio.create_task(_repeat(state.shutdown.check_file, SHUTDOWN_CHECK_SECONDS)),
            asyncio.create_task(monitor_database(background, metrics)),
        ]
        await cache.start()
        logger.info("Started", extra={"release": settings.release, "environment": settings.environment})
        try:
            yield
        finally:
            state.shutdown.begun = True
            await state.products.finish_writes()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    logger.info("Stopped")


async def _repeat(action: Callable[[], Any], seconds: float) -> None:
    while True:
        try:
            action()
        except Exception:  # may be temporary, such as too many open files
            logger.exception("A periodic task failed")
        await asyncio.sleep(seconds)
