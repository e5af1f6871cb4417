"""Queries for users, through ORM sessions: sign-ins are rare. Only the owner role may write users."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Executable, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.users.models import THIS_SECOND, SignInNetwork, User


class UserRepository:
    """Reads and writes users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, name: str) -> User | None:
        return await self._database.retry_read(partial(self._get, "users.find", User.name == name))

    async def read(self, user_id: int) -> User | None:
        return await self._database.retry_read(partial(self._get, "users.read", User.id == user_id))

    async def _get(self, statement: str, condition: ColumnElement[bool]) -> User | None:
        user: User | None = await self._scalar(statement, select(User).where(condition))
        return user

    async def _scalar(self, name: str, statement: Executable) -> Any:
        return await self._database.with_session(name, lambda session: session.scalar(statement))

    async def all(self) -> Sequence[User]:
        query = select(User).order_by(User.name)
        rows = await self._database.with_session("users.list", lambda session: session.scalars(query))
        return rows.all()

    async def add(self, name: str, password_hash: str, scopes: frozenset[str], *, replace: bool) -> bool:
        """Insert a user, or replace it if `replace`; return False if the name is taken."""
        changes: dict[str, Any] = {"password_hash": password_hash, "scopes": sorted(scopes)}
        new = insert(User).values(name=name, **changes)
        if replace:
            # Tokens have whole seconds: those of this second belong to the old password.
            changes |= {"enabled": True, "valid_from": THIS_SECOND + timedelta(seconds=1)}
            new = new.on_conflict_do_update(index_elements=[User.name], set_=changes)
        else:
            new = new.on_conflict_do_nothing(index_elements=[User.name])

        async def write(session: AsyncSession) -> bool:
            if replace:  # the old password may have been used from other networks than the user's
                await session.execute(delete(SignInNetwork).where(SignInNetwork.name == name))
            return await session.scalar(new.returning(User.id)) is not None

        return await self._database.with_session("users.add", write)

    async def disable(self, name: str) -> bool:
        """Disable a user; return whether it exists."""
        change = update(User).where(User.name == name).values(enabled=False)
        return await self._scalar("users.disable", change.returning(User.id)) is not None
