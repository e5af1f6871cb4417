"""Idempotency keys: a client that repeats a POST, after a timeout or a failover, writes once."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    DateTime,
    Index,
    LargeBinary,
    String,
    Text,
    bindparam,
    delete,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Database, Statement
from app.errors import ConflictError

LIFETIME = timedelta(hours=24)
PURGED_AT_ONCE = 5_000


class IdempotencyKey(Base):
    """The answer to a request that carried a key, stored in the transaction of what it did."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    owner: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    location: Mapped[str] = mapped_column(Text)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


_FIELDS = ("owner", "key", "fingerprint", "location", "body")
_SAME = (IdempotencyKey.owner == bindparam("owner"), IdempotencyKey.key == bindparam("key"))
_ID = (IdempotencyKey.owner, IdempotencyKey.key)
RECALL = Statement(
    "idempotency.recall",
    select(IdempotencyKey.fingerprint, IdempotencyKey.location, IdempotencyKey.body).where(*_SAME),
)
REMEMBER = Statement(
    "idempotency.remember",
    insert(IdempotencyKey)
    .values({name: bindparam(name) for name in _FIELDS})
    .on_conflict_do_nothing()
    .returning(IdempotencyKey.key),
)
PURGE = Statement(
    "idempotency.purge",
    delete(IdempotencyKey)
    .where(
        tuple_(*_ID).in_(
            select(*_ID)
            .where(IdempotencyKey.created_at < func.now() - literal(LIFETIME))
            .limit(PURGED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
    )
    .returning(IdempotencyKey.key),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a POST answered, and whether this is a repetition."""

    location: str
    body: bytes
    replayed: bool = False


class _TakenError(Exception):
    """Another request with the same key was quicker; ours is undone."""


class Idempotency:
    """Runs work at most once for each owner and key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def once(
        self, owner: str, key: str, request: bytes, work: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """Do `work` and remember its outcome in one transaction, or return what is remembered.

        Of requests that come together, the later ones wait at the key's row for the first one's end.
        """
        fingerprint = hashlib.sha256(request).digest()

        async def work_and_remember() -> Outcome:
            outcome = await work()
            values = {"fingerprint": fingerprint, "location": outcome.location, "body": outcome.body}
            if not await self._database.write(REMEMBER, owner=owner, key=key, **values):
                raise _TakenError
            return outcome

        if remembered := await self._recall(owner, key, fingerprint):
            return remembered
        try:
            return await self._database.transact("idempotency.once", work_and_remember)
        except _TakenError:
            return await self._recall(owner, key, fingerprint) or await self.once(owner, key, request, work)

    async def _recall(self, owner: str, key: str, fingerprint: bytes) -> Outcome | None:
        rows = await self._database.fetch(RECALL, owner=owner, key=key)
        if not rows:
            return None
        if rows[0]["fingerprint"] != fingerprint:
            raise ConflictError("This idempotency key was used for another request.")
        return Outcome(rows[0]["location"], rows[0]["body"], replayed=True)

    async def purge(self) -> int:
        """Forget what is older than a client may still repeat; return how many keys went."""
        purged = 0
        while rows := await self._database.write(PURGE):
            purged += len(rows)
        return purged
