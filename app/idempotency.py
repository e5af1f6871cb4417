"""Idempotency keys: a client that repeats a POST, after a timeout or a failover, writes once."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import DateTime, Index, LargeBinary, String, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Database
from app.errors import ConflictError

CLAIM = """
INSERT INTO idempotency_keys (owner, key, fingerprint, location, body) VALUES ($1, $2, $3, '', '')
ON CONFLICT DO NOTHING RETURNING key"""
REMEMBER = "UPDATE idempotency_keys SET location = $3, body = $4 WHERE owner = $1 AND key = $2"
RECALL = "SELECT fingerprint, location, body FROM idempotency_keys WHERE owner = $1 AND key = $2"
# A day is longer than any client repeats; in batches, so that no lock is held for long.
PURGE = """
DELETE FROM idempotency_keys WHERE (owner, key) IN (
  SELECT owner, key FROM idempotency_keys WHERE created_at < now() - interval '24 hours'
  LIMIT 5000 FOR UPDATE SKIP LOCKED
) RETURNING key"""


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a POST answered, and whether this is a repetition."""

    location: str
    body: bytes
    replayed: bool = False


class Idempotency:
    """Runs work at most once for each owner and key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def once(
        self, owner: str, key: str, request: BaseModel, work: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """Do `work` and remember its outcome in one transaction, or return what is remembered.

        Of requests that come together, the later ones wait at the key's row for the first one's end.
        """
        if not key:
            return await work()
        content = f"{type(request).__name__} {request.model_dump_json()}"
        fingerprint = hashlib.sha256(content.encode()).digest()

        async def work_or_recall() -> Outcome:
            if await self._database.write("idempotency.claim", CLAIM, owner, key, fingerprint):
                outcome = await work()
                await self._database.write(
                    "idempotency.remember", REMEMBER, owner, key, outcome.location, outcome.body
                )
                return outcome
            rows = await self._database.fetch("idempotency.recall", RECALL, owner, key)
            if not rows:  # it was purged in between
                return await work_or_recall()
            (stored,) = rows
            if stored["fingerprint"] != fingerprint:
                raise ConflictError("This idempotency key was used for another request.")
            return Outcome(stored["location"], stored["body"], replayed=True)

        return await self._database.transact("idempotency.once", work_or_recall)

    async def purge(self) -> int:
        """Forget what is older than a client may still repeat; return how many keys went."""
        purged = 0
        while rows := await self._database.write("idempotency.purge", PURGE):
            purged += len(rows)
        return purged
