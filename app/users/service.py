"""Signing in, and whether a user's token still counts."""

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
MOST_REMEMBERED = 10_000
HASHES_AT_ONCE = 2  # each takes 64 MiB

_hasher = PasswordHasher()
# What an unknown user's password is compared with, so that the answer takes as long as for a known one.
_NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$JYYqy5472Y4Vw6DzMierhw$bXHg3WsucvQkV7k7/ilRkznTAatTGe1l2Oy1KO4dEDA"


class UserService:
    """What can be done with users."""

    def __init__(self, repository: UserRepository, tokens: Tokens, metrics: Metrics) -> None:
        self._repository = repository
        self._metrics = metrics
        self._tokens = tokens
        # Threads of its own: whoever gives up waiting leaves the hash in work behind.
        self._hashers = ThreadPoolExecutor(HASHES_AT_ONCE)
        self._recent: dict[int, tuple[float, User | None]] = {}

    async def sign_in(self, name: str, password: str, wanted: frozenset[str]) -> tuple[str, frozenset[str]]:
        """Return a token and its scopes, those asked for or all; which part was wrong is not told."""
        asked_at = int(time.time())
        user = await self._repository.find(name)
        stored = user.password_hash if user else _NOBODY
        known = await asyncio.get_running_loop().run_in_executor(self._hashers, _matches, stored, password)
        admitted = user is not None and known and user.enabled
        self._metrics.sign_ins.labels("admitted" if admitted else "refused").inc()
        if user is None or not admitted:
            raise UnauthorizedError("The name or the password is wrong.")
        scopes = frozenset(user.scopes)
        scopes &= wanted or scopes
        # Not later than the password was looked up, as it may have been replaced meanwhile.
        issued_at = max(asked_at, int(user.valid_from.timestamp()))
        return self._tokens.issue(user.name, scopes, user_id=user.id, issued_at=issued_at), scopes

    async def check(self, principal: Principal) -> Principal:
        """Return what the holder of a user's token may do now; tokens the operator signed stand alone."""
        if principal.user_id is None:
            return principal
        user = await self._recall(principal.user_id)
        if user is None or not user.enabled or principal.issued_at < user.valid_from.timestamp():
            raise invalid_token()
        scopes = principal.scopes.intersection(user.scopes)
        return Principal(user.name, scopes, principal.user_id, principal.issued_at)

    async def _recall(self, user_id: int) -> User | None:
        now = time.monotonic()
        checked_at, user = self._recent.get(user_id, (-RECHECK_SECONDS, None))
        if now - checked_at < RECHECK_SECONDS:
            return user
        user = await self._repository.read(user_id)
        if len(self._recent) >= MOST_REMEMBERED:
            self._recent.clear()
        self._recent[user_id] = now, user
        return user

    async def add(self, name: str, password: str, scopes: frozenset[str], *, replace: bool) -> bool:
        """Store a user with a fresh hash; return False if the name is taken."""
        if not NAME.fullmatch(name):
            raise OperatorError("A user's name is lower-case letters, digits, dots and dashes, 64 at most.")
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
