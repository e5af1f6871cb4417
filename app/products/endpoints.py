"""Products over HTTP. Answers are ready-made bytes; the response models only document them."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response

from app.auth import WRITE_PRODUCTS, Principal, authorize, guarded, require_scope
from app.errors import problems
from app.etags import answer, expectation
from app.idempotency import Outcome
from app.products.schemas import (
    BulkInput,
    BulkOutput,
    KeyHeader,
    ListQuery,
    ProductChange,
    ProductId,
    ProductInput,
    ProductOutput,
    ProductPage,
    ProductPath,
)
from app.products.service import PATH, ProductService
from app.routing import ShortRoute, body, parameters, parse, parse_body, read_body

Id = Annotated[ProductId, Path(alias="id")]
Writer = Annotated[Principal, require_scope(WRITE_PRODUCTS)]
# For browsers, which must be told what they may send and read.
REQUEST_HEADERS = ("Idempotency-Key", "If-Match", "If-None-Match")
RESPONSE_HEADERS = ("Location", "ETag", "Idempotency-Replayed")
WRITING = problems(400, 401, 403, 409, 413)
NAMING = problems(404)
CHANGING = WRITING | NAMING | problems(412)
READING: dict[int | str, dict[str, object]] = {304: {"description": "The reader's copy is current."}}

router = APIRouter(tags=["products"], responses=problems(422, 503), route_class=ShortRoute)


def _service(request: Request) -> ProductService:
    service: ProductService = request.app.state.products
    return service


def _headers(outcome: Outcome) -> dict[str, str]:
    headers = {"Location": outcome.location} if outcome.location else {}
    return headers | ({"Idempotency-Replayed": "true"} if outcome.replayed else {})


@router.get(
    PATH + "/{id}",
    response_model=ProductOutput,
    responses=NAMING | READING,
    openapi_extra=parameters(ProductPath, "path"),
)
async def read_product(request: Request) -> Response:
    """Read a product."""
    product = parse(ProductPath, "path", request.path_params)
    return answer(request, await _service(request).read(product.id))


@router.get(
    PATH,
    response_model=ProductPage,
    responses=NAMING | READING,
    openapi_extra=parameters(ListQuery, "query"),
)
async def list_products(request: Request) -> Response:
    """List products, filtered and sorted; `after` goes on where a page ended."""
    query = parse(ListQuery, "query", dict(request.query_params))
    return answer(request, await _service(request).page(query))


@router.post(
    PATH,
    status_code=201,
    response_model=ProductOutput,
    responses=WRITING,
    openapi_extra=guarded(WRITE_PRODUCTS) | parameters(KeyHeader, "header") | body(ProductInput),
)
async def create_product(request: Request) -> Response:
    """Create a product."""
    text = await read_body(request)
    writer = await authorize(request, WRITE_PRODUCTS)
    product = parse_body(ProductInput, request, text)
    key = parse(KeyHeader, "header", dict(request.headers))
    outcome = await _service(request).create(writer.subject, key.idempotency_key, product)
    return answer(request, outcome.body, 201, _headers(outcome))


# Not below PATH, where the next part is an id.
@router.post("/api/v1/bulk/products", response_model=BulkOutput, responses=WRITING)
async def save_products(
    request: Request, writer: Writer, bulk: BulkInput, key: Annotated[KeyHeader, Header()]
) -> Response:
    """Create products, and replace those given with an id: all of them or none."""
    outcome = await _service(request).save_many(writer.subject, key.idempotency_key, bulk)
    return answer(request, outcome.body, 200, _headers(outcome))


@router.put(PATH + "/{id}", response_model=ProductOutput, responses=CHANGING)
async def replace_product(request: Request, _: Writer, product_id: Id, product: ProductInput) -> Response:
    """Replace a product; with If-Match only what was read."""
    return answer(request, await _service(request).update(product_id, product, expectation(request)))


@router.patch(PATH + "/{id}", response_model=ProductOutput, responses=CHANGING)
async def change_product(request: Request, _: Writer, product_id: Id, change: ProductChange) -> Response:
    """Change some fields of a product; with If-Match only of what was read."""
    return answer(request, await _service(request).update(product_id, change, expectation(request)))


@router.delete(PATH + "/{id}", status_code=204, responses=CHANGING)
async def delete_product(request: Request, _: Writer, product_id: Id) -> Response:
    """Delete a product; with If-Match only what was read."""
    await _service(request).delete(product_id, expectation(request))
    return Response(status_code=204)
