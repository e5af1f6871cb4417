"""The users table."""

from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, DateTime, Identity, String, Text, UniqueConstraint, func, true
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base

THIS_SECOND = func.date_trunc("second", func.now())


class User(Base):
    """A person who may sign in; tokens issued before `valid_from` are not accepted."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    password_hash: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    enabled: Mapped[bool] = mapped_column(server_default=true())
    valid_from: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=THIS_SECOND)
