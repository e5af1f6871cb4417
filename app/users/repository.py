"""Users in Postgres."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.db import Database, Statement
from app.users.models import User

COLUMNS = (User.id, User.name, User.password_hash, User.scopes, User.enabled, User.valid_from)
_NOW = func.date_trunc("second", func.now())
_NEW = insert(User).values({name: bindparam(name) for name in ("name", "password_hash", "scopes")})

FIND = Statement("users.find", select(*COLUMNS).where(User.name == bindparam("name")))
READ = Statement("users.read", select(*COLUMNS).where(User.id == bindparam("id")))
LIST = Statement("users.list", select(*COLUMNS).order_by(User.name))
ADD = Statement("users.add", _NEW.on_conflict_do_nothing(index_elements=[User.name]).returning(User.id))
REPLACE = Statement(
    "users.replace",
    _NEW.on_conflict_do_update(
        index_elements=[User.name],
        set_={
            "password_hash": _NEW.excluded.password_hash,
            "scopes": _NEW.excluded.scopes,
            "enabled": True,
            "valid_from": _NOW,
        },
    ).returning(User.id),
)
DISABLE = Statement(
    "users.disable",
    update(User).where(User.name == bindparam("name")).values(enabled=False).returning(User.id),
)


@dataclass(frozen=True, slots=True)
class StoredUser:
    """A row of the users table."""

    id: int
    name: str
    password_hash: str
    scopes: frozenset[str]
    enabled: bool
    valid_from: float


class UserRepository:
    """Reads and writes users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, name: str) -> StoredUser | None:
        """Return the user of this name."""
        return next(iter(await self._read(FIND, name=name)), None)

    async def read(self, user_id: int) -> StoredUser | None:
        """Return the user with this id."""
        return next(iter(await self._read(READ, id=user_id)), None)

    async def all(self) -> list[StoredUser]:
        """Return every user in the order of their names."""
        return await self._read(LIST)

    async def add(self, name: str, password_hash: str, scopes: frozenset[str], *, replace: bool) -> bool:
        """Store a user; return False if the name is taken and must not be replaced."""
        statement = REPLACE if replace else ADD
        values = {"name": name, "password_hash": password_hash, "scopes": sorted(scopes)}
        return bool(await self._database.write(statement, **values))

    async def disable(self, name: str) -> bool:
        """Lock a user out; return whether there is such a user."""
        return bool(await self._database.write(DISABLE, name=name))

    async def _read(self, statement: Statement, **values: Any) -> list[StoredUser]:
        return [
            StoredUser(
                row["id"],
                row["name"],
                row["password_hash"],
                frozenset(row["scopes"]),
                row["enabled"],
                row["valid_from"].timestamp(),
            )
            for row in await self._database.fetch(statement, **values)
        ]
