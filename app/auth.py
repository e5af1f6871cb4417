"""Signed, expiring bearer tokens with scopes."""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import jwt
from fastapi import HTTPException, Request, Security
from fastapi.security import HTTPBearer

from app.errors import UnavailableError
from app.settings import Settings

WRITE_PRODUCTS = "products:write"
READ_OPERATIONS = "operations:read"
SCOPES = (WRITE_PRODUCTS, READ_OPERATIONS)
MOST_REMEMBERED = 1000
REQUIRED: Any = {"require": ["exp", "iat", "sub"]}
CLOCK_SECONDS = 5  # by which hosts' clocks may differ: a token may come from one that is ahead


class UnauthorizedError(HTTPException):
    def __init__(self, detail: str, challenge: str = "Bearer") -> None:
        super().__init__(401, detail, {"WWW-Authenticate": challenge})


def invalid_token() -> UnauthorizedError:
    """Return the error for a token that does not count; why is not told apart."""
    return UnauthorizedError("The token is not valid or has expired.", 'Bearer error="invalid_token"')


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request acts for and what it may do; `user_id` is None where an operator signed the token."""

    subject: str
    scopes: frozenset[str]
    user_id: int | None
    issued_at: int


class Tokens:
    """Issues tokens with the current key and verifies them with any key that is still accepted."""

    def __init__(self, settings: Settings) -> None:
        self._keys = settings.signing_keys
        self._algorithm = settings.token_algorithm
        self._lifetime = settings.token_lifetime_seconds
        # With the same keys a token is signed well or never; whether it has expired is asked each time.
        self._known = lru_cache(MOST_REMEMBERED)(self._decode)

    def issue(
        self,
        subject: str,
        scopes: frozenset[str],
        lifetime: int | None = None,
        user_id: int | None = None,
        issued_at: int | None = None,
    ) -> str:
        """Return a token for `subject` that expires `lifetime` seconds after `issued_at`, or after now."""
        issued_at = issued_at or int(time.time())
        claims = {
            "sub": subject,
            "scope": " ".join(sorted(scopes)),
            "iat": issued_at,
            "exp": issued_at + (lifetime or self._lifetime),
            "uid": user_id,
        }
        if not self._keys:  # production does not start without one
            raise UnavailableError("There is no SECRET_KEY to sign a token with.")
        return jwt.encode(claims, self._keys[0], self._algorithm)

    def verify(self, token: str) -> Principal:
        """Return the token's principal or raise UnauthorizedError."""
        principal, expires_at = self._known(token)
        if expires_at <= time.time():
            raise invalid_token()
        return principal

    def _decode(self, token: str) -> tuple[Principal, int]:
        for key in self._keys:
            try:
                claims = jwt.decode(token, key, [self._algorithm], REQUIRED, leeway=CLOCK_SECONDS)
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidTokenError:
                break
            scopes = frozenset(claims.get("scope", "").split())
            return Principal(claims["sub"], scopes, claims.get("uid"), claims["iat"]), claims["exp"]
        raise invalid_token()


async def authorize(request: Request, scope: str) -> Principal:
    """Let a request pass only with a valid token for the scope."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError("This needs a bearer token.")
    tokens: Tokens = request.app.state.tokens
    principal: Principal = await request.app.state.users.check(tokens.verify(token))
    request.state.user = principal.subject
    if scope not in principal.scopes:
        challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
        raise HTTPException(403, f"The token does not carry the scope {scope}.", challenge)
    return principal


# Documents the scheme; what a request carries is judged by `authorize`.
bearer = HTTPBearer(
    bearerFormat="JWT", description="A token from /api/v1/auth/token or `app.manage token`.", auto_error=False
)


def require_scope(scope: str) -> Any:
    """Return the dependency that guards a route with a scope; the OpenAPI document names it."""

    async def guard(request: Request, _: Annotated[Any, Security(bearer)]) -> Principal:
        return await authorize(request, scope)

    return Security(guard, scopes=[scope])


def guarded(scope: str) -> dict[str, Any]:
    """Return what documents the scope of a route that calls `authorize` itself."""
    return {"security": [{bearer.scheme_name: [scope]}]}
