"""Liveness, readiness and metrics; what they say to anyone names no host and no error."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from sqlalchemy import exc, text

from app import __version__
from app.auth import READ_OPERATIONS, require_scope
from app.db import Database
from app.errors import problems
from app.migrations import known_revisions
from app.monitor import collect
from app.redis_link import RedisLink

logger = logging.getLogger(__name__)
router = APIRouter(tags=["operations"])

CHECK_SECONDS = 1.5
UNDEFINED_TABLE = "42P01"
NO_STORE = {"Cache-Control": "no-store"}


class Drain:
    """Whether this worker is on its way out: not ready, and no connection is kept alive.

    What starts and stops instances makes the file a moment before it stops one, so that proxies have let go
    of their connections by then.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.begun = False

    def look(self) -> None:
        """See whether the file is there."""
        self.begun = self._file is not None and self._file.exists()


class Health:
    """Answers whether this worker can serve.

    The database and its schema decide. Redis does not: without it the service goes on, slower, and says
    "degraded". A schema that is newer than this release knows is fine too: during a release the old
    instances serve on after the migration.
    """

    def __init__(self, database: Database, redis: RedisLink, externals: Sequence[str] = ()) -> None:
        self._database = database
        self._redis = redis
        self._externals = externals
        self._revisions = known_revisions()

    async def report(self) -> tuple[bool, dict[str, str]]:
        """Run every check within its deadline; return whether to serve, and each check's word."""
        migrations, cache = await asyncio.gather(
            _within_deadline("migrations", self._check_migrations()),
            _within_deadline("cache", self._check_cache()),
        )
        # Reading the revision is the check of the database, too.
        database = "failed" if migrations == "failed" else "ok"
        ready = migrations in ("ok", "newer")
        return ready, {"database": database, "migrations": migrations, "cache": cache}

    async def look_outside(self) -> dict[str, str]:
        """Tell which external dependencies can be reached. Readiness never asks: no restart would help."""
        words = await asyncio.gather(
            *(_within_deadline(place, self._check_external(place)) for place in self._externals)
        )
        return dict(zip(self._externals, words, strict=True))

    @staticmethod
    async def _check_external(place: str) -> str:
        host, _, port = place.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        return "ok"

    async def _check_migrations(self) -> str:
        async with self._database.engine.connect() as connection:
            try:
                revision = await connection.scalar(text("SELECT version_num FROM alembic_version"))
            except exc.ProgrammingError as error:
                if getattr(error.orig, "sqlstate", None) != UNDEFINED_TABLE:
                    raise
                return "behind"
        if revision == self._revisions[-1]:
            return "ok"
        return "behind" if revision is None or revision in self._revisions else "newer"

    async def _check_cache(self) -> str:
        if self._redis.client is None:
            return "off"
        return "ok" if await self._redis.ping() else "failed"


class Detail(BaseModel):
    """Documents what operators are told."""

    ready: bool
    checks: dict[str, str]
    external: dict[str, str]
    version: str
    release: str
    environment: str
    host: str
    pool: dict[str, int]
    database: dict[str, Any] | None


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
    return JSONResponse({"status": "alive"}, headers=NO_STORE)


@router.get(
    "/health/ready", summary="The service can do its work", responses={503: {"description": "Not now"}}
)
async def ready(request: Request) -> Response:
    """Answer 200 (ready or degraded) or 503 (not ready) with a word for each check."""
    if request.app.state.drain.begun:
        return JSONResponse({"status": "draining"}, 503, NO_STORE)
    is_ready, checks = await request.app.state.health.report()
    status = "not ready" if not is_ready else "degraded" if checks["cache"] == "failed" else "ready"
    return JSONResponse({"status": status, "checks": checks}, 200 if is_ready else 503, NO_STORE)


@router.get(
    "/health/detail",
    summary="What an operator wants to know",
    responses=problems(401, 403, 503),
    dependencies=[require_scope(READ_OPERATIONS)],
)
async def detail(request: Request, response: Response) -> Detail:
    """Tell about the release, the checks, and what Postgres says about itself."""
    state = request.app.state
    is_ready, checks = await state.health.report()
    figures = None
    if checks["database"] == "ok":
        async with state.database.connection("monitor") as driver:
            figures = await collect(driver)
    response.headers.update(NO_STORE)
    return Detail(
        ready=is_ready and not state.drain.begun,
        checks=checks,
        external=await state.health.look_outside(),
        version=__version__,
        release=state.settings.release,
        environment=state.settings.environment,
        host=socket.gethostname(),
        pool=state.database.sample_pool(),
        database=figures,
    )


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Expose the metrics of all workers; the public edge does not pass this address on."""
    return Response(request.app.state.metrics.render(), headers=NO_STORE, media_type=CONTENT_TYPE_LATEST)
