"""What clients send and receive."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from decimal import Decimal
from typing import Annotated, Any, Literal

import orjson
from fastapi import HTTPException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    WithJsonSchema,
    field_validator,
    model_validator,
)

MOST_ITEMS = 5_000
# Postgres reads what a page skips: further on `after` leads, through an index.
MOST_PAGES = 50

# Postgres text cannot hold NUL, other control characters have no place in a name, and spaces are not one.
_ANY = r"[^\x00-\x1f\x7f-\x9f]*"
Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, pattern=rf"^{_ANY}[^\s\x00-\x1f\x7f-\x9f]{_ANY}$"),
]
Name = Annotated[Text, Field(max_length=200)]
Category = Annotated[Text, Field(max_length=100)]
PRICE = re.compile(r"[0-9]{1,10}(\.[0-9]{1,2})?")


def _refuse_odd_spellings(value: Any) -> Any:
    if isinstance(value, str) and not PRICE.fullmatch(value):
        raise ValueError("must look like 19.90")
    return value


def _to_integer(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is an integer, "3" is not."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Price = Annotated[
    Decimal,
    Field(ge=0, max_digits=12, decimal_places=2),
    BeforeValidator(_refuse_odd_spellings),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{PRICE.pattern}$"},
                {"type": "number", "minimum": 0, "maximum": 9999999999, "multipleOf": 0.01},
            ],
            "description": "Exact; always a string in answers.",
            "examples": ["19.90"],
        },
        mode="validation",
    ),
]
Stock = Annotated[int, Field(ge=0, le=2_147_483_647, strict=True), BeforeValidator(_to_integer)]
ProductId = Annotated[int, Field(ge=1, le=9_223_372_036_854_775_807)]
# No further than every reader of JSON can count.
BodyId = Annotated[int, Field(ge=1, le=2**53 - 1, strict=True), BeforeValidator(_to_integer)]
Sort = Literal["id", "-id", "price", "-price"]
_PLACE: TypeAdapter[tuple[Sort, int, Decimal]] = TypeAdapter(tuple[Sort, ProductId, Price])


class Input(BaseModel):
    """What a client sends; a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid")


class ProductInput(Input):
    """A whole product, to create or replace one."""

    name: Name
    category: Category
    price: Price
    stock: Stock = 0


def drop_default(schema: dict[str, Any]) -> None:
    """Keep a default that no request can ask for out of the document."""
    schema.pop("default", None)


LEFT_OUT: Any = Field(None, json_schema_extra=drop_default)


class ProductChange(Input):
    """Some fields of a product; those left out stay as they are."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    name: Name = LEFT_OUT
    category: Category = LEFT_OUT
    price: Price = LEFT_OUT
    stock: Stock = LEFT_OUT

    @model_validator(mode="after")
    def _refuse_nothing(self) -> "ProductChange":
        if not self.model_fields_set:
            raise ValueError("at least one field is needed")
        return self


class ProductOutput(BaseModel):
    """A product as answered; documents the bytes that the repository builds."""

    id: ProductId
    name: str
    category: str
    price: str = Field(pattern=r"^\d{1,10}\.\d{2}$", examples=["19.90"])
    stock: int


class ProductPage(BaseModel):
    """A page of products; `next` is the place after it, to be given as `after`."""

    items: list[ProductOutput]
    page: int
    page_size: int
    has_next: bool
    next: str | None


class KeyHeader(BaseModel):
    """What makes a POST safe to repeat; none by default."""

    idempotency_key: str = Field(
        "",
        alias="idempotency-key",
        min_length=8,
        max_length=128,
        pattern="^[A-Za-z0-9._:-]+$",
        json_schema_extra=drop_default,
        description="A request that is repeated with the same key within a day is done once.",
    )


class ProductPath(BaseModel):
    """Which product."""

    id: ProductId


class BulkItem(ProductInput):
    """A product to create, or with an id one to replace."""

    id: BodyId = LEFT_OUT


class BulkInput(Input):
    """Products to create and replace, all or none."""

    items: list[BulkItem] = Field(min_length=1, max_length=MOST_ITEMS)


class BulkOutput(BaseModel):
    """What became of the items; the ids are in their order."""

    created: int
    updated: int
    ids: list[ProductId]


class ListQuery(Input):
    """Which products, in which order, from where."""

    category: Category | None = None
    min_price: Price | None = None
    max_price: Price | None = None
    in_stock: bool | None = None
    sort: Sort = "id"
    page: int = Field(1, ge=1, json_schema_extra={"maximum": MOST_PAGES})
    page_size: int = Field(20, ge=1, le=100)
    after: str | None = Field(
        None,
        max_length=200,
        pattern="^[A-Za-z0-9_-]+$",
        description="`next` of the page before: as fast at the millionth row as at the first.",
    )

    @field_validator("page")
    @classmethod
    def _refuse_deep_pages(cls, page: int) -> int:
        if page > MOST_PAGES:
            raise ValueError(
                f"ends at {MOST_PAGES}: give the `next` of a page as `after` to go on from there"
            )
        return page

    def place(self) -> dict[str, Any]:
        """Return the sort values of the row that `after` stands for."""
        if self.after is None:
            return {}
        try:
            text = urlsafe_b64decode(self.after + "=" * (-len(self.after) % 4))
            sort, product_id, price = _PLACE.validate_json(text)
        except ValueError:
            sort = None
        if sort != self.sort:
            raise HTTPException(404, "`after` is not a place in this list: start again without it.")
        return {"id": product_id, "price": price}

    def next_place(self, product_id: int, price: str) -> str:
        """Return the place after a row."""
        return urlsafe_b64encode(orjson.dumps([self.sort, product_id, price])).decode().rstrip("=")
