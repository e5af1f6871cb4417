"""What clients send and receive."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

from app.errors import InvalidError

# Postgres text cannot hold NUL; other control characters have no place in a name either.
PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=PRINTABLE)
]
Category = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=PRINTABLE)
]
Price = Annotated[
    Decimal, Field(ge=0, max_digits=12, decimal_places=2, description="Exact; always a string in answers.")
]
Stock = Annotated[int, Field(ge=0, le=2_147_483_647, strict=True)]
Sort = Literal["id", "-id", "price", "-price"]
MOST_ITEMS = 5_000
FILTERS = ("category", "min_price", "max_price", "in_stock")
ProductId = Annotated[int, Field(ge=1, le=9_223_372_036_854_775_807)]

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


class ProductChange(BaseModel):
    """Some fields of a product; those left out stay as they are."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    category: Category | None = None
    price: Price | None = None
    stock: Stock | None = None

    @model_validator(mode="after")
    def _refuse_null_and_nothing(self) -> "ProductChange":
        if not self.model_fields_set:
            raise ValueError("at least one field is needed")
        if any(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("a field cannot be set to null")
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

    id: ProductId | None = None


class BulkInput(BaseModel):
    """Products to create and replace, all or none."""

    model_config = ConfigDict(extra="forbid")

    items: list[BulkItem] = Field(min_length=1, max_length=MOST_ITEMS)

    @model_validator(mode="after")
    def _refuse_repetition(self) -> "BulkInput":
        seen: dict[int, int] = {}
        for number, item in enumerate(self.items):
            if item.id is not None and seen.setdefault(item.id, number) != number:
                raise ValueError(f"items {seen[item.id]} and {number} have the same id")
        return self


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
            raise InvalidError("`after` is not a place in this list: start again without it.")
        return {"after_id": product_id, "after_price": price}

    def next_place(self, product_id: int, price: Decimal) -> str:
        """Return the place after a row."""
        text = json.dumps([self.sort, product_id, str(price)], separators=(",", ":"))
        return urlsafe_b64encode(text.encode()).decode().rstrip("=")
