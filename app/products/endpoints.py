"""HTTP endpoints of products. Responses are JSON bytes; the response models only document them."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response

from app.auth import CLEAR_CACHE, WRITE_PRODUCTS, Principal, authorize, documented_scope, require_scope
from app.errors import problems
from app.etags import precondition, respond
from app.idempotency import Outcome
from app.products.schemas import (
    BulkInput,
    BulkOutput,
    IdempotencyHeader,
    ListQuery,
    ProductChange,
    ProductId,
    ProductInput,
    ProductOutput,
    ProductPage,
    ProductPath,
)
from app.products.service import PATH, ProductService
from app.routing import DirectRoute, body, parameters, parse, parse_body, read_body

Id = Annotated[ProductId, Path(alias="id")]
Writer = Annotated[Principal, require_scope(WRITE_PRODUCTS)]
# CORS: headers that browsers may send and read.
REQUEST_HEADERS = ("Idempotency-Key", "If-Match", "If-None-Match")
RESPONSE_HEADERS = ("Location", "ETag", "Idempotency-Replayed")
WRITE_ERRORS = problems(400, 401, 403, 409, 413)
NOT_FOUND = problems(404)
CHANGE_ERRORS = WRITE_ERRORS | NOT_FOUND | problems(412)
NOT_MODIFIED: dict[int | str, dict[str, object]] = {304: {"description": "The client's copy is current."}}

# The busiest routes, see DirectRoute.
direct_router = APIRouter(tags=["products"], responses=problems(422, 503), route_class=DirectRoute)
router = APIRouter(tags=["products"], responses=problems(422, 503))


def _service(request: Request) -> ProductService:
    service: ProductService = request.app.state.products
    return service


def _headers(outcome: Outcome) -> dict[str, str]:
    headers = {"Location": outcome.location} if outcome.location else {}
    return headers | ({"Idempotency-Replayed": "true"} if outcome.replayed else {})


@direct_router.get(
    PATH + "/{id}",
    response_model=ProductOutput,
    responses=NOT_FOUND | NOT_MODIFIED,
    openapi_extra=parameters(ProductPath, "path"),
)
async def read_product(request: Request) -> Response:
    """Return a product."""
    product = parse(ProductPath, "path", request.path_params)
    return respond(request, await _service(request).read(product.id))


@direct_router.get(
    PATH,
    response_model=ProductPage,
    responses=NOT_FOUND | NOT_MODIFIED,
    openapi_extra=parameters(ListQuery, "query"),
)
async def list_products(request: Request) -> Response:
    """List products, filtered and sorted; `after` takes the cursor from `next` of the previous page."""
    query = parse(ListQuery, "query", dict(request.query_params))
    return respond(request, await _service(request).page(query))


@direct_router.post(
    PATH,
    status_code=201,
    response_model=ProductOutput,
    responses=WRITE_ERRORS,
    openapi_extra=documented_scope(WRITE_PRODUCTS)
    | parameters(IdempotencyHeader, "header")
    | body(ProductInput),
)
async def create_product(request: Request) -> Response:
    """Create a product."""
    text = await read_body(request)
    writer = await authorize(request, WRITE_PRODUCTS)
    product = parse_body(ProductInput, request, text)
    key = parse(IdempotencyHeader, "header", dict(request.headers))
    outcome = await _service(request).create(writer.subject, key.idempotency_key, product)
    return respond(request, outcome.body, 201, _headers(outcome))


# Not below PATH, where the next segment is an id.
@router.post("/api/v1/bulk/products", response_model=BulkOutput, responses=WRITE_ERRORS)
async def save_products(
    request: Request, writer: Writer, bulk: BulkInput, key: Annotated[IdempotencyHeader, Header()]
) -> Response:
    """Create products, and replace those with an id, all or none."""
    outcome = await _service(request).save_many(writer.subject, key.idempotency_key, bulk)
    return respond(request, outcome.body, 200, _headers(outcome))


@router.put(PATH + "/{id}", response_model=ProductOutput, responses=CHANGE_ERRORS)
async def replace_product(request: Request, _: Writer, product_id: Id, product: ProductInput) -> Response:
    """Replace a product; If-Match makes it conditional."""
    return respond(request, await _service(request).update(product_id, product, precondition(request)))


@router.patch(PATH + "/{id}", response_model=ProductOutput, responses=CHANGE_ERRORS)
async def change_product(request: Request, _: Writer, product_id: Id, change: ProductChange) -> Response:
    """Change some fields of a product; If-Match makes it conditional."""
    return respond(request, await _service(request).update(product_id, change, precondition(request)))


@router.delete(PATH + "/{id}", status_code=204, responses=CHANGE_ERRORS)
async def delete_product(request: Request, _: Writer, product_id: Id) -> Response:
    """Delete a product; If-Match makes it conditional."""
    await _service(request).delete(product_id, precondition(request))
    return Response(status_code=204)


@router.delete(
    PATH + "/{id}/cache",
    status_code=204,
    responses=problems(401, 403),
    dependencies=[require_scope(CLEAR_CACHE)],
)
async def clear_product_cache(request: Request, product_id: Id) -> Response:
    """Remove a product from the cache, for example after a change by hand in the database."""
    await _service(request).clear_cache(product_id)
    return Response(status_code=204)
