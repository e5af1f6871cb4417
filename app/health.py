"""Liveness, readiness and metrics; anonymous responses name no host and no error."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from sqlalchemy import exc, text

from app import __version__
from app.auth import READ_OPERATIONS, require_scope
from app.cache import Cache
from app.db import Database
from app.errors import problems
from app.metrics import process_figures
from app.migrations import known_revisions
from app.monitor import collect_statistics

logger = logging.getLogger(__name__)
router = APIRouter(tags=["operations"])

CHECK_SECONDS = 1.5
UNDEFINED_TABLE = "42P01"
T = TypeVar("T")
NO_STORE = {"Cache-Control": "no-store"}


class Shutdown:
    """Whether this worker is shutting down: it is not ready and closes each connection after its response.

    The release mechanism creates the shutdown file shortly before it stops the instance. Proxies then have
    closed their idle connections when the instance stops.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.begun = False

    def check_file(self) -> None:
        """Begin the shutdown if the file exists, and end it if the file is gone."""
        self.begun = self._file is not None and self._file.exists()


class Health:
    """Checks whether this worker can serve.

    The database and its schema decide. Without Redis the service is slower but works, and with a read-only
    database it serves reads: "degraded". A schema newer than this release is accepted, because old instances
    serve on after a migration.
    """

    def __init__(self, database: Database, cache: Cache, externals: Sequence[str] = ()) -> None:
        self._database = database
        self._cache = cache
        self._externals = externals
        self._revisions = known_revisions()

    async def report(self) -> tuple[bool, dict[str, str]]:
        """Return whether the service is ready, and the result of each check within its deadline."""
        (database, migrations), cache = await asyncio.gather(
            _within_deadline("database", self._check_database(), ("failed", "failed")),
            _within_deadline("cache", self._check_cache(), "failed"),
        )
        ready = migrations in ("ok", "newer")
        return ready, {"database": database, "migrations": migrations, "cache": cache}

    async def check_externals(self) -> dict[str, str]:
        """Return which external endpoints accept a connection; not part of readiness."""
        results = await asyncio.gather(
            *(_within_deadline(name, self._check_external(name), "failed") for name in self._externals)
        )
        return dict(zip(self._externals, results, strict=True))

    @staticmethod
    async def _check_external(endpoint: str) -> str:
        host, _, port = endpoint.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        return "ok"

    async def _check_database(self) -> tuple[str, str]:
        """Return the state of the database and of its schema."""
        state = text("SELECT version_num, current_setting('transaction_read_only') FROM alembic_version")
        async with self._database.engine.connect() as connection:
            try:
                row = (await connection.execute(state)).first()
            except exc.ProgrammingError as error:
                if getattr(error.orig, "sqlstate", None) != UNDEFINED_TABLE:
                    raise
                row = None
        revision, read_only = row or (None, "off")
        database = "read-only" if read_only == "on" else "ok"
        if revision == self._revisions[-1]:
            return database, "ok"
        return database, "behind" if revision is None or revision in self._revisions else "newer"

    async def _check_cache(self) -> str:
        if not self._cache.enabled:
            return "off"
        return "ok" if await self._cache.refresh() else "failed"


class Detail(BaseModel):
    """Response of /health/detail."""

    ready: bool
    checks: dict[str, str]
    external: dict[str, str]
    version: str
    release: str
    environment: str
    host: str
    pool: dict[str, int]
    process: dict[str, float]
    workers: dict[str, float]
    database: dict[str, Any] | None


async def _within_deadline(name: str, check: Awaitable[T], failed: T) -> T:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check
    except Exception as error:
        logger.warning("Check failed", extra={"check": name, "error": type(error).__name__})
        return failed


@router.get("/health/live", summary="Liveness")
async def live() -> Response:
    """Return 200. No dependency is checked: restarting this process would not repair it."""
    return JSONResponse({"status": "alive"}, headers=NO_STORE)


@router.get("/health", summary="Readiness (alias)", responses={503: {"description": "Not ready"}})
@router.get("/health/ready", summary="Readiness", responses={503: {"description": "Not ready"}})
async def ready(request: Request) -> Response:
    """Return 200 (ready or degraded) or 503 (not ready, shutting down), with the result of each check."""
    if request.app.state.shutdown.begun:
        return JSONResponse({"status": "shutting down"}, 503, NO_STORE)
    is_ready, checks = await request.app.state.health.report()
    degraded = checks["cache"] == "failed" or checks["database"] == "read-only"
    status = "not ready" if not is_ready else "degraded" if degraded else "ready"
    return JSONResponse({"status": status, "checks": checks}, 200 if is_ready else 503, NO_STORE)


@router.get(
    "/health/detail",
    summary="Details for operators",
    responses=problems(401, 403, 503),
    dependencies=[require_scope(READ_OPERATIONS)],
)
async def detail(request: Request, response: Response) -> Detail:
    """Return the release, the checks, the statistics of Postgres, and figures of the processes.

    `pool` and `process` describe the worker that answers; `workers` sums up all workers of the host.
    """
    state = request.app.state
    is_ready, checks = await state.health.report()
    statistics = None
    if checks["database"] != "failed":
        async with state.database.connection("monitor") as driver:
            statistics = await collect_statistics(driver)
    response.headers.update(NO_STORE)
    state.metrics.sample_process()
    return Detail(
        ready=is_ready and not state.shutdown.begun,
        checks=checks,
        external=await state.health.check_externals(),
        version=__version__,
        release=state.settings.release,
        environment=state.settings.environment,
        host=socket.gethostname(),
        pool=state.database.sample_pool(),
        process=process_figures(),
        workers=state.metrics.worker_figures(),
        database=statistics,
    )


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Return the metrics of all workers; the edge does not expose this path."""
    return Response(request.app.state.metrics.render(), headers=NO_STORE, media_type=CONTENT_TYPE_LATEST)
