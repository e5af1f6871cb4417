from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware

from app.api import router
from app.core.config import settings

VERSION = Path("VERSION").read_text().strip()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.pool = await asyncpg.create_pool(
        str(settings.DATABASE_URL),
        min_size=settings.MIN_CONNECTION_COUNT,
        max_size=settings.MAX_CONNECTION_COUNT,
    )
    yield
    await app.state.pool.close()


app = FastAPI(title="Notes", version=VERSION, lifespan=lifespan)
app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.ALLOWED_HOSTS)
app.include_router(router)


@app.get("/")
async def index() -> dict[str, str]:
    return {"name": "notes", "version": VERSION}
