"""Liveness, readiness and metrics; what they say to anyone names no host and no error."""

import asyncio
import logging
from collections.abc import Awaitable

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import text

from app.db import Database
from app.redis_link import RedisLink

logger = logging.getLogger(__name__)
router = APIRouter(tags=["operations"])

CHECK_SECONDS = 1.5
NO_STORE = {"Cache-Control": "no-store"}


class Health:
    """Answers whether this worker can serve.

    The database and its schema decide. Redis does not: without it the service goes on, slower, and says
    "degraded". A schema that is newer than this release knows is fine too: during a release the old
    instances serve on after the migration.
    """

    def __init__(self, database: Database, redis: RedisLink, revisions: list[str]) -> None:
        self._database = database
        self._redis = redis
        self._revisions = revisions

    async def report(self) -> tuple[bool, dict[str, str]]:
        """Run every check within its deadline; return whether to serve, and each check's word."""
        database, migrations, cache = await asyncio.gather(
            _within_deadline("database", self._check_database()),
            _within_deadline("migrations", self._check_migrations()),
            _within_deadline("cache", self._check_cache()),
        )
        ready = database == "ok" and migrations in ("ok", "newer")
        return ready, {"database": database, "migrations": migrations, "cache": cache}

    async def _check_database(self) -> str:
        async with self._database.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        return "ok"

    async def _check_migrations(self) -> str:
        async with self._database.engine.connect() as connection:
            revision = await connection.scalar(text("SELECT version_num FROM alembic_version"))
        if revision == self._revisions[-1]:
            return "ok"
        return "behind" if revision is None or revision in self._revisions else "newer"

    async def _check_cache(self) -> str:
        if not self._redis.enabled:
            return "off"
        return "ok" if await self._redis.ping() else "failed"


async def _within_deadline(name: str, check: Awaitable[str]) -> str:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check
    except Exception as error:
        logger.warning("Check failed", extra={"check": name, "error": type(error).__name__})
        return "failed"


@router.get("/health/live", summary="The process answers")
async def live() -> Response:
    """Touch nothing: a restart would not cure a database."""
    return Response(b'{"status":"alive"}', headers=NO_STORE, media_type="application/json")


@router.get(
    "/health/ready", summary="The service can do its work", responses={503: {"description": "Not now"}}
)
async def ready(request: Request) -> Response:
    """Answer 200 (ready or degraded) or 503 (not ready) with a word for each check."""
    health: Health = request.app.state.health
    is_ready, checks = await health.report()
    status = "not ready" if not is_ready else "degraded" if checks["cache"] == "failed" else "ready"
    body = orjson.dumps({"status": status, "checks": checks})
    return Response(body, 200 if is_ready else 503, NO_STORE, "application/json")


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Expose the metrics of all workers; the public edge does not pass this address on."""
    request.app.state.sample()
    return Response(request.app.state.metrics.render(), headers=NO_STORE, media_type=CONTENT_TYPE_LATEST)
