"""HTTP endpoints of products. Responses are JSON bytes; the response models only document them."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.auth import CLEAR_CACHE, WRITE_PRODUCTS, require_scope
from app.errors import problems
from app.etags import precondition, respond
from app.idempotency import Outcome
from app.products.schemas import (
    BulkInput,
    BulkOutput,
    IdempotencyHeader,
    ListQuery,
    ProductChange,
    ProductInput,
    ProductOutput,
    ProductPage,
    ProductPath,
)
from app.products.service import PATH, ProductService
from app.routing import DirectRoute, parameters, parse

# CORS: headers that browsers may send and read.
REQUEST_HEADERS = ("Idempotency-Key", "If-Match", "If-None-Match")
RESPONSE_HEADERS = ("Location", "ETag", "Idempotency-Replayed")
NOT_FOUND = problems(404)
NOT_MODIFIED: dict[int | str, dict[str, object]] = {304: {"description": "The client's copy is current."}}
WRITE: dict[str, Any] = {
    "dependencies": [require_scope(WRITE_PRODUCTS)],
    "responses": problems(400, 401, 403, 409, 413, 415),
}
CHANGE = WRITE | {
    "responses": WRITE["responses"] | NOT_FOUND | problems(412),
    "openapi_extra": parameters(ProductPath, "path"),
}

router = APIRouter(tags=["products"], responses=problems(400, 422, 503), route_class=DirectRoute)


def _service(request: Request) -> ProductService:
    service: ProductService = request.app.state.products
    return service


def _id(request: Request) -> int:
    return parse(ProductPath, "path", request.path_params).id


def _key(request: Request) -> str:
    return parse(IdempotencyHeader, "header", dict(request.headers)).idempotency_key


def _headers(outcome: Outcome) -> dict[str, str]:
    headers = {"Location": outcome.location} if outcome.location else {}
    return headers | ({"Idempotency-Replayed": "true"} if outcome.replayed else {})


@router.get(
    PATH + "/{id}",
    response_model=ProductOutput,
    responses=NOT_FOUND | NOT_MODIFIED,
    openapi_extra=parameters(ProductPath, "path"),
)
async def read_product(request: Request) -> Response:
    """Return a product."""
    return respond(request, await _service(request).read(_id(request)))


@router.get(
    PATH,
    response_model=ProductPage,
    responses=NOT_FOUND | NOT_MODIFIED,
    openapi_extra=parameters(ListQuery, "query"),
)
async def list_products(request: Request) -> Response:
    """List products, filtered and sorted; `after` takes the cursor from `next` of the previous page."""
    query = parse(ListQuery, "query", dict(request.query_params))
    return respond(request, await _service(request).page(query))


@router.post(
    PATH,
    status_code=201,
    response_model=ProductOutput,
    openapi_extra=parameters(IdempotencyHeader, "header"),
    **WRITE,
)
async def create_product(request: Request, product: ProductInput) -> Response:
    """Create a product."""
    outcome = await _service(request).create(request.state.user, _key(request), product)
    return respond(request, outcome.body, 201, _headers(outcome))


# Not below PATH, where the next segment is an id.
@router.post(
    "/bulk" + PATH,
    response_model=BulkOutput,
    openapi_extra=parameters(IdempotencyHeader, "header"),
    **WRITE,
)
async def save_products(request: Request, bulk: BulkInput) -> Response:
    """Create products, and replace those with an id, all or none."""
    outcome = await _service(request).save_many(request.state.user, _key(request), bulk)
    return respond(request, outcome.body, 200, _headers(outcome))


@router.put(PATH + "/{id}", response_model=ProductOutput, **CHANGE)
async def replace_product(request: Request, product: ProductInput) -> Response:
    """Replace a product; If-Match makes it conditional."""
    return respond(request, await _service(request).update(_id(request), product, precondition(request)))


@router.patch(PATH + "/{id}", response_model=ProductOutput, **CHANGE)
async def change_product(request: Request, change: ProductChange) -> Response:
    """Change some fields of a product; If-Match makes it conditional."""
    return respond(request, await _service(request).update(_id(request), change, precondition(request)))


@router.delete(PATH + "/{id}", status_code=204, **CHANGE)
async def delete_product(request: Request) -> Response:
    """Delete a product; If-Match makes it conditional."""
    await _service(request).delete(_id(request), precondition(request))
    return Response(status_code=204)


@router.delete(
    PATH + "/{id}/cache",
    status_code=204,
    responses=problems(401, 403),
    dependencies=[require_scope(CLEAR_CACHE)],
    openapi_extra=parameters(ProductPath, "path"),
)
async def clear_product_cache(request: Request) -> Response:
    """Remove a product from the cache, for example after a change by hand in the database."""
    await _service(request).clear_cache(_id(request))
    return Response(status_code=204)
