"""The products table."""

from decimal import Decimal

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, Integer, Numeric, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class Product(Base):
    """A product. Give relationships lazy="raise", so that no attribute access runs a query."""

    __tablename__ = "products"
    __table_args__ = (
        CheckConstraint("price >= 0", name="price_not_negative"),
        CheckConstraint("stock >= 0", name="stock_not_negative"),
        Index(None, "category", "id"),
        Index(None, "price", "id"),
        Index(None, "category", "price", "id"),
        Index(None, "stock", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    category: Mapped[str] = mapped_column(String(100))
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    stock: Mapped[int] = mapped_column(Integer)
