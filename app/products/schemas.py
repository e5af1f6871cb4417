"""Requests and responses of products."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

import orjson
from fastapi import HTTPException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from app.errors import MAX_ERRORS
from app.routing import Input

MAX_BULK_ITEMS = 5_000
# Postgres reads every row that a page skips; `after` seeks through an index instead.
MAX_PAGE = 50

# No control characters (Postgres text cannot hold NUL), and at least one that is not a space.
_ANY = r"[^\x00-\x1f\x7f-\x9f]*"
Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, pattern=rf"^{_ANY}[^\s\x00-\x1f\x7f-\x9f]{_ANY}$"),
]
Name = Annotated[Text, Field(max_length=200)]
Category = Annotated[Text, Field(max_length=100)]
PRICE = re.compile(r"[0-9]{1,10}(\.[0-9]{1,2})?")
INTEGER = re.compile(r"0|[1-9][0-9]*")


def _check_price_text(value: Any) -> Any:
    if isinstance(value, str) and not PRICE.fullmatch(value):
        raise ValueError("must look like 19.90")
    return value


def _check_integer_text(value: Any) -> Any:
    """Python also takes 1_0, +10, 010, spaces, and digits of other scripts for integers."""
    if isinstance(value, str) and not INTEGER.fullmatch(value):
        raise ValueError("must be an integer, written with the digits 0 to 9 only")
    return value


def _to_integer(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is an integer, "3" is not."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Price = Annotated[
    Decimal,
    Field(ge=0, max_digits=12, decimal_places=2),
    BeforeValidator(_check_price_text),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{PRICE.pattern}$"},
                {"type": "number", "minimum": 0, "maximum": 9999999999, "multipleOf": 0.01},
            ],
            "description": "Exact; always a string in responses.",
            "examples": ["19.90"],
        },
        mode="validation",
    ),
]
Stock = Annotated[int, Field(ge=0, le=2_147_483_647, strict=True), BeforeValidator(_to_integer)]
ProductId = Annotated[int, Field(ge=1, le=9_223_372_036_854_775_807), BeforeValidator(_check_integer_text)]
# Limited to integers that every JSON parser represents exactly.
BodyId = Annotated[int, Field(ge=1, le=2**53 - 1, strict=True), BeforeValidator(_to_integer)]
Sort = Literal["id", "-id", "price", "-price"]
_CURSOR: TypeAdapter[tuple[Sort, int, Decimal]] = TypeAdapter(tuple[Sort, ProductId, Price])


class ProductInput(Input):
    """A complete product, to create or replace one."""

    # Four times the longest product with every character escaped: parsing 2 MiB would block other requests.
    max_bytes: ClassVar[int | None] = 16_384

    name: Name
    category: Category
    price: Price
    stock: Stock = 0


def drop_default(schema: dict[str, Any]) -> None:
    """Remove the default from the schema, because a request cannot send it."""
    schema.pop("default", None)


OMITTED: Any = Field(None, json_schema_extra=drop_default)


class ProductChange(Input):
    """Some fields of a product; omitted fields keep their values."""

    max_bytes: ClassVar[int | None] = ProductInput.max_bytes
    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    name: Name = OMITTED
    category: Category = OMITTED
    price: Price = OMITTED
    stock: Stock = OMITTED

    @model_validator(mode="after")
    def _require_a_field(self) -> "ProductChange":
        if not self.model_fields_set:
            raise ValueError("at least one field is required")
        return self


class ProductOutput(BaseModel):
    """A product in responses; documents the JSON that the repository builds."""

    id: ProductId
    name: str
    category: str
    price: str = Field(pattern=r"^\d{1,10}\.\d{2}$", examples=["19.90"])
    stock: int


class Total(BaseModel):
    """Number of products on all pages, and whether it is exact or the query planner's estimate."""

    value: int
    kind: Literal["exact", "estimated"]


class ProductPage(BaseModel):
    """A page of products; `next` is the cursor to pass as `after` for the following page."""

    items: list[ProductOutput]
    page: int
    page_size: int
    has_next: bool
    next: str | None
    total: Total | None = Field(None, description="Only if the request asks for it.")


class IdempotencyHeader(BaseModel):
    """The Idempotency-Key header, optional: it makes a POST safe to retry."""

    idempotency_key: str = Field(
        "",
        alias="idempotency-key",
        min_length=8,
        max_length=128,
        pattern="^[A-Za-z0-9._:-]+$",
        json_schema_extra=drop_default,
        description="Requests with the same key within a day are executed once.",
    )


class ProductPath(BaseModel):
    """Path parameters of one product."""

    id: ProductId


class BulkItem(ProductInput):
    """A product to create, or to replace if it has an id."""

    id: BodyId = OMITTED


class BulkInput(Input):
    """Products to create and replace, all or none."""

    items: list[BulkItem] = Field(min_length=1, max_length=MAX_BULK_ITEMS)

    @field_validator("items", mode="wrap")
    @classmethod
    def _stop_at_first_errors(cls, items: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Validate slices until enough errors are found: naming those of all items would block the worker."""
        if not isinstance(items, list) or not 0 < len(items) <= MAX_BULK_ITEMS:
            return handler(items)
        checked: list[Any] = []
        errors = 0
        for start in range(0, len(items), MAX_ERRORS):
            part = items[start : start + MAX_ERRORS]
            try:
                part = handler(part)
            except ValidationError as error:
                errors += error.error_count()
            checked += part
            if errors >= MAX_ERRORS:
                break
        return handler(checked) if errors else checked


class BulkOutput(BaseModel):
    """Result of a bulk write; `ids` has the order of the items."""

    created: int
    updated: int
    ids: list[ProductId]


class ListQuery(Input):
    """Query parameters of the list: filters, sort order, and page or cursor."""

    category: Category | None = None
    min_price: Price | None = None
    max_price: Price | None = None
    in_stock: bool | None = None
    sort: Sort = "id"
    page: int = Field(1, ge=1, json_schema_extra={"maximum": MAX_PAGE})
    page_size: int = Field(20, ge=1, le=100)
    total: Literal["exact", "estimated"] | None = Field(
        None,
        description="Adds the number of products on all pages, and says which of the two it is: an exact "
        "count that would take longer than about 0.1 s is estimated.",
    )
    after: str | None = Field(
        None,
        max_length=200,
        pattern="^[A-Za-z0-9_-]+$",
        description="Cursor: `next` of the previous page. As fast at the millionth row as at the first.",
    )

    _check_text = field_validator("page", "page_size", mode="before")(_check_integer_text)

    @field_validator("page")
    @classmethod
    def _check_page(cls, page: int) -> int:
        if page > MAX_PAGE:
            raise ValueError(f"must not exceed {MAX_PAGE}; pass `next` of a page as `after` to continue")
        return page

    def cursor(self) -> dict[str, Any]:
        """Return the sort values of the row before the page, or an empty dict without `after`."""
        if self.after is None:
            return {}
        try:
            text = urlsafe_b64decode(self.after + "=" * (-len(self.after) % 4))
            sort, product_id, price = _CURSOR.validate_json(text)
        except ValueError:
            sort = None
        if sort != self.sort:
            raise HTTPException(
                404, "`after` is not a cursor of this list. Request the first page without it."
            )
        return {"id": product_id, "price": price}

    def next_cursor(self, product_id: int, price: str) -> str:
        """Return the cursor for the page after this row."""
        return urlsafe_b64encode(orjson.dumps([self.sort, product_id, price])).decode().rstrip("=")
