"""The limit of failed sign-ins for each account, which all workers of all hosts share through Postgres.

It counts by name, so no change of address evades it. An account has two budgets: one for the networks from
which the user has signed in, and one for all others. Guesses from elsewhere use up the second one only, so
they do not lock the user out. Both together admit ten failures a minute.
"""

from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from typing import Final

from app.db import Database

WINDOW_SECONDS: Final = 60
# Five failures of each budget in a minute; a network is known for 90 days after a sign-in.
STATE: Final = """
WITH found AS (SELECT EXISTS (
  SELECT FROM sign_in_networks
  WHERE name = $1 AND network = $2 AND seen_at > now() - interval '90 days') AS known)
SELECT known, (
  SELECT count(*) FROM sign_in_attempts AS a, unnest(failed_at) AS t
  WHERE a.name = $1 AND a.known = found.known AND t > clock_timestamp() - interval '1 minute'
) >= 5 AS exhausted
FROM found"""
# Counts the attempt as failed before the password is checked: parallel guesses cannot pass together.
BEGIN: Final = """
INSERT INTO sign_in_attempts AS a (name, known, failed_at) VALUES ($1, $2, ARRAY[clock_timestamp()])
ON CONFLICT (name, known) DO UPDATE SET failed_at = ARRAY(
  SELECT t FROM unnest(a.failed_at) AS t WHERE t > clock_timestamp() - interval '1 minute'
) || clock_timestamp()
WHERE (SELECT count(*) FROM unnest(a.failed_at) AS t WHERE t > clock_timestamp() - interval '1 minute') < 5
RETURNING failed_at[cardinality(failed_at)] AS at"""
WITHDRAW: Final = """
UPDATE sign_in_attempts SET failed_at = array_remove(failed_at, $3) WHERE name = $1 AND known = $2"""
REMEMBER: Final = """
INSERT INTO sign_in_networks (name, network) VALUES ($1, $2)
ON CONFLICT (name, network) DO UPDATE SET seen_at = excluded.seen_at"""
# Batches keep locks short; SKIP LOCKED lets purges run in parallel.
PURGE: Final = (
    """
DELETE FROM sign_in_attempts WHERE (name, known) IN (
  SELECT name, known FROM sign_in_attempts
  WHERE NOT EXISTS (SELECT FROM unnest(failed_at) AS t WHERE t > now() - interval '1 hour')
  LIMIT 5000 FOR UPDATE SKIP LOCKED
) RETURNING name""",
    """
DELETE FROM sign_in_networks WHERE (name, network) IN (
  SELECT name, network FROM sign_in_networks WHERE seen_at < now() - interval '90 days'
  LIMIT 5000 FOR UPDATE SKIP LOCKED
) RETURNING name""",
)


def network_of(client: str) -> str:
    """Return the network of a client's address: the address itself, or the /64 of an IPv6 address."""
    try:
        network = ip_network(client)
    except ValueError:  # a unix socket
        return ""
    return str(network.supernet(new_prefix=64) if network.version == 6 else network)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that counts as failed until it is withdrawn."""

    name: str
    known: bool
    at: datetime


class SignInAttempts:
    """Counts failed sign-ins and remembers the networks of successful ones."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def state(self, name: str, network: str) -> tuple[bool, bool]:
        """Return whether the user has signed in from the network, and whether its budget is used up."""
        (row,) = await self._database.fetch("sign_in.state", STATE, name, network)
        return row["known"], row["exhausted"]

    async def begin(self, name: str, known: bool) -> Attempt | None:
        """Count an attempt as failed; return None if the budget is used up."""
        rows = await self._database.execute("sign_in.begin", BEGIN, name, known)
        return Attempt(name, known, rows[0]["at"]) if rows else None

    async def withdraw(self, attempt: Attempt) -> None:
        """Uncount an attempt whose password was right or has not been checked."""
        await self._database.execute("sign_in.withdraw", WITHDRAW, attempt.name, attempt.known, attempt.at)

    async def remember(self, name: str, network: str) -> None:
        """Add a network to those from which the user has signed in."""
        if network:
            await self._database.execute("sign_in.remember", REMEMBER, name, network)

    async def purge(self) -> int:
        """Delete what no longer counts; return the number of rows."""
        purged = 0
        for statement in PURGE:
            while rows := await self._database.execute("sign_in.purge", statement):
                purged += len(rows)
        return purged
