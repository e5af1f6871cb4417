"""The tables of users and of their sign-ins."""

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


class SignInAttempts(Base):
    """The latest failed sign-ins with a name, which need not exist; known and other networks apart.

    Unlogged: a crash of Postgres may empty it.
    """

    __tablename__ = "sign_in_attempts"
    __table_args__ = {"prefixes": ["UNLOGGED"]}  # noqa: RUF012  (SQLAlchemy's)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    known: Mapped[bool] = mapped_column(primary_key=True)
    failed_at: Mapped[list[datetime]] = mapped_column(ARRAY(DateTime(timezone=True)))


class SignInNetwork(Base):
    """A client network from which a user has signed in."""

    __tablename__ = "sign_in_networks"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    network: Mapped[str] = mapped_column(String(64), primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
