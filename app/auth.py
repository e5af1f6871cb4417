"""Signed, expiring bearer tokens with scopes."""

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Annotated, Any

import jwt
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from app.errors import ProblemError
from app.settings import Settings

WRITE_PRODUCTS = "products:write"
READ_OPERATIONS = "operations:read"
SCOPES = (WRITE_PRODUCTS, READ_OPERATIONS)


class UnauthorizedError(ProblemError):
    status = 401


class ForbiddenError(ProblemError):
    status = 403


def invalid_token() -> UnauthorizedError:
    """Return the error for a token that does not count; why is not told apart."""
    return UnauthorizedError(
        "The token is not valid or has expired.",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request acts for and what it may do; `user_id` is None where an operator signed the token."""

    subject: str
    scopes: frozenset[str]
    user_id: int | None = None
    issued_at: int = 0


class Tokens:
    """Issues tokens with the current key and verifies them with any key that is still accepted."""

    def __init__(self, settings: Settings) -> None:
        self._keys = {_key_id(key): key for key in settings.signing_keys}
        self._algorithm = settings.token_algorithm
        self._lifetime = settings.token_lifetime_seconds

    def issue(
        self, subject: str, scopes: frozenset[str], lifetime: int | None = None, user_id: int | None = None
    ) -> str:
        """Return a token for `subject` that expires after `lifetime` seconds."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "sub": subject,
            "scope": " ".join(sorted(scopes)),
            "iat": now,
            "exp": now + (self._lifetime if lifetime is None else lifetime),
        }
        if user_id is not None:
            claims["uid"] = user_id
        key_id, key = next(iter(self._keys.items()))
        return jwt.encode(claims, key, self._algorithm, headers={"kid": key_id})

    def verify(self, token: str) -> Principal:
        """Return the token's principal or raise UnauthorizedError."""
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            keys = list(self._keys.values()) if key_id is None else [self._keys[key_id]]
            claims = self._claims(token, keys)
            user_id = claims.get("uid")
            if user_id is not None and type(user_id) is not int:
                raise invalid_token()
            scopes = frozenset(str(claims.get("scope", "")).split())
            return Principal(claims["sub"], scopes, user_id, int(claims["iat"]))
        except (jwt.InvalidTokenError, LookupError):
            raise invalid_token() from None

    def _claims(self, token: str, keys: list[str]) -> dict[str, Any]:
        """Try each key; tokens from before keys had ids do not say which one."""
        for key in keys:
            try:
                options: Any = {"require": ["exp", "iat", "sub"]}
                return jwt.decode(token, key, algorithms=[self._algorithm], options=options)
            except jwt.InvalidSignatureError:
                continue
        raise jwt.InvalidSignatureError


def _key_id(key: str) -> str:
    return hmac.new(key.encode(), b"key id", hashlib.sha256).hexdigest()[:12]


_bearer = HTTPBearer(
    auto_error=False, bearerFormat="JWT", description="A token from /api/v1/auth/token or `app.manage token`."
)


async def authorize(
    request: Request,
    required: SecurityScopes,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Principal:
    """Let a request pass only with a valid token for every required scope."""
    if credentials is None:
        raise UnauthorizedError("This needs a bearer token.", headers={"WWW-Authenticate": "Bearer"})
    tokens: Tokens = request.app.state.tokens
    principal: Principal = await request.app.state.users.check(tokens.verify(credentials.credentials))
    request.state.user = principal.subject
    for scope in required.scopes:
        if scope not in principal.scopes:
            raise ForbiddenError(
                f"The token does not carry the scope {scope}.",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
            )
    return principal


def require_scope(scope: str) -> Any:
    """Return the dependency that guards a route with a scope; the OpenAPI document names it."""
    return Security(authorize, scopes=[scope])
