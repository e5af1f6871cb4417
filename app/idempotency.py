"""Idempotency keys: a client that retries a POST after a timeout or a failover writes once."""

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
STORE = "UPDATE idempotency_keys SET location = $3, body = $4 WHERE owner = $1 AND key = $2"
LOAD = "SELECT fingerprint, location, body FROM idempotency_keys WHERE owner = $1 AND key = $2"
# No client retries for longer than a day. Batches keep locks short; SKIP LOCKED lets purges run in parallel.
PURGE = """
DELETE FROM idempotency_keys WHERE (owner, key) IN (
  SELECT owner, key FROM idempotency_keys WHERE created_at < now() - interval '24 hours'
  LIMIT 5000 FOR UPDATE SKIP LOCKED
) RETURNING key"""


class IdempotencyKey(Base):
    """The response to a request with a key, stored in the same transaction as its changes."""

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
    """The response to a POST, and whether it is replayed from the stored one."""

    location: str
    body: bytes
    replayed: bool = False


class Idempotency:
    """Runs work at most once per owner and key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def once(
        self, owner: str, key: str, request: BaseModel, work: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """Run `work` and store its outcome in one transaction, or return the stored outcome.

        Concurrent requests with the same key wait at the key's row until the first one ends. Raises
        ConflictError if the key was used for a different request.
        """
        if not key:
            return await work()
        content = f"{type(request).__name__} {request.model_dump_json()}"
        fingerprint = hashlib.sha256(content.encode()).digest()

        async def work_or_load() -> Outcome:
            if await self._database.execute("idempotency.claim", CLAIM, owner, key, fingerprint):
                outcome = await work()
                await self._database.execute(
                    "idempotency.remember", STORE, owner, key, outcome.location, outcome.body
                )
                return outcome
            rows = await self._database.fetch("idempotency.recall", LOAD, owner, key)
            if not rows:  # purged since the claim failed
                return await work_or_load()
            (stored,) = rows
            if stored["fingerprint"] != fingerprint:
                raise ConflictError("The idempotency key was used for a different request.")
            return Outcome(stored["location"], stored["body"], replayed=True)

        return await self._database.transact("idempotency.once", work_or_load)

    async def purge(self, after_batch: Callable[[], Awaitable[object]] | None = None) -> int:
        """Delete expired keys in batches; return their number. Concurrent purges do not block each other."""
        purged = 0
        while rows := await self._database.execute("idempotency.purge", PURGE):
            purged += len(rows)
            if after_batch:
                await after_batch()
        return purged
