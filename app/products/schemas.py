"""What clients send and receive."""

from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

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
ProductId = Annotated[int, Field(ge=1, le=9_223_372_036_854_775_807)]


class ProductInput(BaseModel):
    """A whole product, to create or replace one."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    category: Category
    price: Price
    stock: Stock = 0


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
    """A page of products in the order of their ids."""

    items: list[ProductOutput]
    page: int
    page_size: int
    has_next: bool
