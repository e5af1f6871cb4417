"""Sign-in, and the check of users' tokens."""

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from app.auth import Principal, Tokens, UnauthorizedError, invalid_token
from app.metrics import Metrics
from app.settings import OperatorError
from app.users.models import User
from app.users.repository import UserRepository

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MINIMUM_PASSWORD_LENGTH = 12
MAXIMUM_PASSWORD_LENGTH = 256
# A disabled user's tokens are refused by every worker within this time.
RECHECK_SECONDS = 5
MAX_CACHED_USERS = 10_000
MAX_CONCURRENT_HASHES = 2  # each uses 64 MiB

_hasher = PasswordHasher()
# Compared with the password of an unknown user, so that the response time does not reveal known names.
_DUMMY_HASH = (
    "$argon2id$v=19$m=65536,t=3,p=4$JYYqy5472Y4Vw6DzMierhw$bXHg3WsucvQkV7k7/ilRkznTAatTGe1l2Oy1KO4dEDA"
)


class UserService:
    """Operations on users."""

    def __init__(self, repository: UserRepository, tokens: Tokens, metrics: Metrics) -> None:
        self._repository = repository
        self._metrics = metrics
        self._tokens = tokens
        # A pool of its own bounds memory: a hash continues after its client has disconnected.
        self._hashers = ThreadPoolExecutor(MAX_CONCURRENT_HASHES)
        self._cached: dict[int, tuple[float, User | None]] = {}

    async def sign_in(
        self, name: str, password: str, requested: frozenset[str]
    ) -> tuple[str, frozenset[str]]:
        """Return a token and its scopes: the requested ones that the user has, or all of the user's.

        Raises UnauthorizedError, the same for an unknown name and a wrong password.
        """
        started_at = int(time.time())
        user = await self._repository.find(name)
        stored = user.password_hash if user else _DUMMY_HASH
        matches = await asyncio.get_running_loop().run_in_executor(self._hashers, _matches, stored, password)
        admitted = user is not None and matches and user.enabled
        self._metrics.sign_ins.labels("admitted" if admitted else "refused").inc()
        if user is None or not admitted:
            raise UnauthorizedError("The username or the password is wrong.")
        scopes = frozenset(user.scopes)
        scopes &= requested or scopes
        # Not later than the lookup of the password, which may have been replaced since.
        issued_at = max(started_at, int(user.valid_from.timestamp()))
        return self._tokens.issue(user.name, scopes, user_id=user.id, issued_at=issued_at), scopes

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

    async def add(self, name: str, password: str, scopes: frozenset[str], *, replace: bool) -> bool:
        """Hash the password and store the user; return False if the name is taken."""
        if not NAME.fullmatch(name):
            raise OperatorError(
                "A username has at most 64 lower-case letters, digits, dots, dashes and underscores."
            )
        if not MINIMUM_PASSWORD_LENGTH <= len(password) <= MAXIMUM_PASSWORD_LENGTH:
            limits = f"{MINIMUM_PASSWORD_LENGTH} to {MAXIMUM_PASSWORD_LENGTH}"
            raise OperatorError(f"A password has {limits} characters.")
        hashed = await asyncio.to_thread(_hasher.hash, password)
        return await self._repository.add(name, hashed, scopes, replace=replace)


def _matches(hashed: str, password: str) -> bool:
    try:
        return _hasher.verify(hashed, password)
    except VerifyMismatchError:
        return False
