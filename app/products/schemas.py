"""What clients send and receive."""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from app.errors import NotFoundError

# Postgres text cannot hold NUL, other control characters have no place in a name, and spaces are not one.
_ANY = r"[^\x00-\x1f\x7f-\x9f]*"
PRINTABLE = rf"^{_ANY}[^\s\x00-\x1f\x7f-\x9f]{_ANY}$"
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=PRINTABLE)
]
Category = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=PRINTABLE)
]
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
MOST_ITEMS = 5_000
FILTERS = ("category", "min_price", "max_price", "in_stock")

_PLACE: TypeAdapter[tuple[Sort, int, Decimal]] = TypeAdapter(tuple[Sort, ProductId, Price])


class ProductInput(BaseModel):
    """A whole product, to create or replace one."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    category: Category
    price: Price
    stock: Stock = 0

    def values(self) -> dict[str, Any]:
        """Return every field."""
        return self.model_dump()


def drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _left_out() -> Any:
    """A default that no request can ask for, and that the document does not show."""
    return Field(None, json_schema_extra=drop_default)


class ProductChange(BaseModel):
    """Some fields of a product; those left out stay as they are."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})

    name: Name = _left_out()
    category: Category = _left_out()
    price: Price = _left_out()
    stock: Stock = _left_out()

    @model_validator(mode="after")
    def _refuse_nothing(self) -> "ProductChange":
        if not self.model_fields_set:
            raise ValueError("at least one field is needed")
        return self

    def values(self) -> dict[str, Any]:
        """Return the fields that were sent."""
        return self.model_dump(include=self.model_fields_set)


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


class BulkItem(ProductInput):
    """A product to create, or with an id one to replace."""

    id: BodyId = _left_out()


class BulkInput(BaseModel):
    """Products to create and replace, all or none."""

    model_config = ConfigDict(extra="forbid")

    items: list[BulkItem] = Field(min_length=1, max_length=MOST_ITEMS)


class BulkOutput(BaseModel):
    """What became of the items; the ids are in their order."""

    created: int
    updated: int
    ids: list[ProductId]


class ListQuery(BaseModel):
    """Which products, in which order, from where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: Category | None = None
    min_price: Price | None = None
    max_price: Price | None = None
    in_stock: bool | None = None
    sort: Sort = "id"
    page: int = Field(1, ge=1, le=10_000)
    page_size: int = Field(20, ge=1, le=100)
    after: str | None = Field(
        None,
        max_length=200,
        pattern="^[A-Za-z0-9_-]+$",
        description="`next` of the page before: as fast at the millionth row as at the first.",
    )

    @property
    def filters(self) -> tuple[str, ...]:
        """The names of the filters that were given."""
        return tuple(name for name in FILTERS if getattr(self, name) is not None)

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
            raise NotFoundError("`after` is not a place in this list: start again without it.")
        return {"after_id": product_id, "after_price": price}

    def next_place(self, product_id: int, price: Decimal) -> str:
        """Return the place after a row."""
        text = json.dumps([self.sort, product_id, str(price)], separators=(",", ":"))
        return urlsafe_b64encode(text.encode()).decode().rstrip("=")
