"""Sign-in, and the check of users' tokens."""

import asyncio
import re
import time

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from app.auth import Principal, Tokens, UnauthorizedError, invalid_token
from app.errors import TooManyRequestsError, UnavailableError
from app.metrics import Metrics
from app.settings import OperatorError
from app.users.attempts import WINDOW_SECONDS, Attempt, SignInAttempts, network_of
from app.users.checks import Checks, Overloaded, Rank, Suspects
from app.users.models import User
from app.users.repository import UserRepository

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MINIMUM_PASSWORD_LENGTH = 12
MAXIMUM_PASSWORD_LENGTH = 256
# A disabled user's tokens are refused by every worker within this time.
RECHECK_SECONDS = 5
MAX_CACHED_USERS = 10_000
RETRY_AFTER_SECONDS = 2

# One thread for each check: more would take the processor from the requests of others.
_hasher = PasswordHasher(parallelism=1)
# Compared with the password of an unknown user, so that the response time does not reveal known names.
_DUMMY_HASH = (
    "$argon2id$v=19$m=65536,t=3,p=1$4JOcdAB3pz3wAnC+A0GEXg$IfRVwvi37vYBpDMowYn/YlqQily4NU47DdvrdJzfKnw"
)


class UserService:
    """Operations on users."""

    def __init__(
        self, repository: UserRepository, attempts: SignInAttempts, tokens: Tokens, metrics: Metrics
    ) -> None:
        self._repository = repository
        self._attempts = attempts
        self._metrics = metrics
        self._tokens = tokens
        self._checks = Checks()
        self._suspects = Suspects()
        self._cached: dict[int, tuple[float, User | None]] = {}

    async def sign_in(
        self, name: str, password: str, requested: frozenset[str], client: str
    ) -> tuple[str, frozenset[str]]:
        """Return a token and its scopes: the requested ones that the user has, or all of the user's.

        client: The client's address; users from a network where they have signed in before are served first.

        Raises UnauthorizedError, the same for an unknown name and a wrong password; TooManyRequestsError
        after too many failures with the name, also if the password is right; and UnavailableError at once
        if too many others wait.
        """
        started_at = int(time.time())
        network = network_of(client)
        attempt, rank = await self._admit(name, network)
        user = await self._repository.find(name)
        stored = user.password_hash if user else _DUMMY_HASH
        try:
            matches = await self._checks.run(rank, _matches, stored, password)
        except Overloaded:
            await self._attempts.withdraw(attempt)
            raise self._overloaded() from None
        if user is None or not matches or not user.enabled:
            self._suspects.add(network)
            self._metrics.sign_ins.labels("refused").inc()
            raise UnauthorizedError("The username or the password is wrong.")
        await self._attempts.withdraw(attempt)
        await self._attempts.remember(name, network)
        self._metrics.sign_ins.labels("admitted").inc()
        scopes = frozenset(user.scopes)
        scopes &= requested or scopes
        # Not later than the lookup of the password, which may have been replaced since.
        issued_at = max(started_at, int(user.valid_from.timestamp()))
        return self._tokens.issue(user.name, scopes, user_id=user.id, issued_at=issued_at), scopes

    async def _admit(self, name: str, network: str) -> tuple[Attempt, Rank]:
        """Count an attempt as failed, and return it with its rank in the queue."""
        if not self._checks.has_room(Rank.KNOWN):  # so there is none for others either
            raise self._overloaded()
        known, exhausted = await self._attempts.state(name, network)
        rank = self._suspects.rank(network, known)
        if not exhausted and not self._checks.has_room(rank):
            raise self._overloaded()
        if exhausted or (attempt := await self._attempts.begin(name, known)) is None:
            self._suspects.add(network)
            self._metrics.sign_ins.labels("limited").inc()
            raise TooManyRequestsError(
                "Too many sign-ins with this username have failed. Wait a minute.", WINDOW_SECONDS
            )
        return attempt, rank

    def _overloaded(self) -> UnavailableError:
        self._metrics.sign_ins.labels("overloaded").inc()
        return UnavailableError(
            f"Too many sign-ins are waiting. Retry the request after {RETRY_AFTER_SECONDS} s.",
            RETRY_AFTER_SECONDS,
        )

    async def check(self, principal: Principal) -> Principal:
        """Return the principal with the user's current scopes; an operator's token is returned unchanged."""
        if principal.user_id is None:
            return principal
        user = await self._find_cached(principal.user_id)
        if user is None or not user.enabled or principal.issued_at < user.valid_from.timestamp():
            raise invalid_token()
        scopes = principal.scopes.intersection(user.scopes)
        return Principal(user.name, scopes, principal.user_id, principal.issued_at)

    async def _find_cached(self, user_id: int) -> User | None:
        now = time.monotonic()
        checked_at, user = self._cached.get(user_id, (-RECHECK_SECONDS, None))
        if now - checked_at < RECHECK_SECONDS:
            return user
        user = await self._repository.read(user_id)
        if len(self._cached) >= MAX_CACHED_USERS:
            self._cached.clear()
        self._cached[user_id] = now, user
        return user


async def add_user(
    repository: UserRepository, name: str, password: str, scopes: frozenset[str], *, replace: bool
) -> bool:
    """Hash the password and store the user; return False if the name is taken."""
    if not NAME.fullmatch(name):
        raise OperatorError(
            "A username has at most 64 lower-case letters, digits, dots, dashes and underscores."
        )
    if not MINIMUM_PASSWORD_LENGTH <= len(password) <= MAXIMUM_PASSWORD_LENGTH:
        limits = f"{MINIMUM_PASSWORD_LENGTH} to {MAXIMUM_PASSWORD_LENGTH}"
        raise OperatorError(f"A password has {limits} characters.")
    hashed = await asyncio.to_thread(_hasher.hash, password)
    return await repository.add(name, hashed, scopes, replace=replace)


def _matches(hashed: str, password: str) -> bool:
    try:
        return _hasher.verify(hashed, password)
    except VerifyMismatchError:
        return False
