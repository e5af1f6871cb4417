"""Products over HTTP. Answers are ready-made bytes; the response models only document them."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.auth import WRITE_PRODUCTS, require_scope
from app.errors import problems
from app.products.schemas import Category, ProductChange, ProductId, ProductInput, ProductOutput, ProductPage
from app.products.service import ProductService

PATH = "/api/v1/products"
JSON = "application/json"
Id = Annotated[ProductId, Path(alias="id")]
Writer = require_scope(WRITE_PRODUCTS)
WRITING = problems(401, 403, 409, 413)
NAMING = problems(404)

router = APIRouter(prefix=PATH, tags=["products"], responses=problems(422, 503))


def _service(request: Request) -> ProductService:
    service: ProductService = request.app.state.products
    return service


@router.get("", response_model=ProductPage)
async def list_products(
    request: Request,
    page: Annotated[int, Query(ge=1, le=10_000)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
    category: Category | None = None,
) -> Response:
    """List products in the order of their ids, of one category or of all."""
    return Response(await _service(request).list(category, page, page_size), media_type=JSON)


@router.post("", status_code=201, response_model=ProductOutput, responses=WRITING, dependencies=[Writer])
async def create_product(request: Request, product: ProductInput) -> Response:
    """Create a product."""
    product_id, body = await _service(request).create(product.model_dump())
    return Response(body, 201, {"Location": f"{PATH}/{product_id}"}, JSON)


@router.get("/{id}", response_model=ProductOutput, responses=NAMING)
async def read_product(request: Request, product_id: Id) -> Response:
    """Read a product."""
    return Response(await _service(request).read(product_id), media_type=JSON)


@router.put("/{id}", response_model=ProductOutput, responses=WRITING | NAMING, dependencies=[Writer])
async def replace_product(request: Request, product_id: Id, product: ProductInput) -> Response:
    """Replace a product."""
    return Response(await _service(request).update(product_id, product.model_dump()), media_type=JSON)


@router.patch("/{id}", response_model=ProductOutput, responses=WRITING | NAMING, dependencies=[Writer])
async def change_product(request: Request, product_id: Id, change: ProductChange) -> Response:
    """Change some fields of a product."""
    return Response(await _service(request).update(product_id, change.values()), media_type=JSON)


@router.delete("/{id}", status_code=204, responses=WRITING | NAMING, dependencies=[Writer])
async def delete_product(request: Request, product_id: Id) -> Response:
    """Delete a product."""
    await _service(request).delete(product_id)
    return Response(status_code=204)
