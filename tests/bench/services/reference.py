"""The same routes, implemented as in tutorials; the reference of the benchmark.

It follows common practice: a BaseHTTPMiddleware that logs, a pickle cache, the ORM with a response model.
It has no authentication and no metrics, which makes it faster.
"""

import logging
import os
import pickle
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict
from pythonjsonlogger.json import JsonFormatter
from redis.asyncio import Redis
from sqlalchemy import BigInteger, Identity, Numeric, String, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

CREDENTIALS = Path(os.environ["CREDENTIALS_DIRECTORY"])
PREFIX = "api:reference:"
TTL_SECONDS = 300

engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"),
    connect_args={"password": (CREDENTIALS / "database_password").read_text()},
    pool_size=8,
    max_overflow=0,
    pool_pre_ping=True,
    pool_recycle=3600,
)
new_session = async_sessionmaker(engine, expire_on_commit=False)
redis = Redis.from_url(
    os.environ["REDIS_URL"],
    username=os.environ["REDIS_USERNAME"],
    password=(CREDENTIALS / "redis_password").read_text(),
    max_connections=50,
)
logger = logging.getLogger("reference")
handler = logging.StreamHandler()
handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
logger.addHandler(handler)
logger.setLevel(logging.INFO)


class Base(DeclarativeBase):
    """Base of the mapped classes."""


class Product(Base):
    """The service's own table."""

    __tablename__ = "products"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    category: Mapped[str] = mapped_column(String(100))
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    stock: Mapped[int]


class ProductInput(BaseModel):
    """A product to store."""

    name: str
    category: str
    price: Decimal
    stock: int


class ProductOutput(ProductInput):
    """A stored product."""

    model_config = ConfigDict(from_attributes=True)

    id: int


class LoggingMiddleware(BaseHTTPMiddleware):
    """Log every request with an id and its duration."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Serve one request."""
        request_id = str(uuid.uuid4())
        request.state.request_id = request_id
        started = time.time()
        response = await call_next(request)
        logger.info(
            "request",
            extra={
                "request_id": request_id,
                "method": request.method,
                "path": request.url.path,
                "status": response.status_code,
                "duration": time.time() - started,
                "client": request.client.host if request.client else None,
            },
        )
        response.headers["X-Request-ID"] = request_id
        return response


async def get_session() -> AsyncIterator[AsyncSession]:
    """Yield a session per request; commit it, or roll it back on an exception."""
    async with new_session() as session:
        try:
            yield session
            await session.commit()
        except Exception:
            await session.rollback()
            raise


Session = Annotated[AsyncSession, Depends(get_session)]
Read = Callable[..., Awaitable[ProductOutput]]


def cached(prefix: str) -> Callable[[Read], Read]:
    """Cache a function's results in Redis, pickled."""

    def decorate(function: Read) -> Read:
        @wraps(function)
        async def read(*args: Any, **kwargs: Any) -> ProductOutput:
            key = f"{PREFIX}{prefix}:{kwargs['product_id']}"
            if isinstance(found := await redis.get(key), bytes):
                stored: ProductOutput = pickle.loads(found)  # noqa: S301  (as tutorials do; the service does not)
                return stored
            value = await function(*args, **kwargs)
            await redis.setex(key, TTL_SECONDS, pickle.dumps(value))
            return value

        return read

    return decorate


async def load(session: AsyncSession, product_id: int) -> ProductOutput:
    """Read a product or respond 404."""
    product = (await session.execute(select(Product).where(Product.id == product_id))).scalar_one_or_none()
    if product is None:
        raise HTTPException(404, "Product not found")
    return ProductOutput.model_validate(product)


app = FastAPI()
if os.environ.get("REQUEST_LOG") != "off":  # to measure its cost
    app.add_middleware(LoggingMiddleware)


@app.get("/health/ready")
@app.get("/api/v1/nothing")
async def nothing() -> dict[str, str]:
    """Respond without I/O."""
    return {"status": "nothing"}


@app.get("/api/v1/products/{product_id}", response_model=ProductOutput)
async def read_product(product_id: int, session: Session) -> ProductOutput:
    """Read a product by its key."""
    return await load(session, product_id)


@app.get("/api/v1/cached/{product_id}", response_model=ProductOutput)
@cached("product")
async def read_cached(product_id: int, session: Session) -> ProductOutput:
    """Read a product through the cache."""
    return await load(session, product_id)


@app.get("/api/v1/products", response_model=list[ProductOutput])
async def list_products(session: Session, skip: int = 0, limit: int = 20) -> list[Product]:
    """List products."""
    found = await session.execute(select(Product).order_by(Product.id).offset(skip).limit(limit))
    return list(found.scalars())


@app.post("/api/v1/products", response_model=ProductOutput, status_code=201)
async def create_product(product: ProductInput, session: Session) -> Product:
    """Create a product."""
    stored = Product(**product.model_dump())
    session.add(stored)
    await session.commit()
    await session.refresh(stored)
    return stored
