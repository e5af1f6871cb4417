"""Signed, expiring bearer tokens with scopes."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import jwt
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.errors import ProblemError
from app.settings import Settings

WRITE_PRODUCTS = "products:write"


class UnauthorizedError(ProblemError):
    status = 401


class ForbiddenError(ProblemError):
    status = 403


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request acts for and what it may do."""

    subject: str
    scopes: frozenset[str]


class Tokens:
    """Issues and verifies tokens with the settings' key and algorithm."""

    def __init__(self, settings: Settings) -> None:
        self._key = settings.secret_key.get_secret_value()
        self._algorithm = settings.token_algorithm
        self._lifetime = settings.token_lifetime_seconds

    def issue(self, subject: str, scopes: frozenset[str], lifetime: int | None = None) -> str:
        """Return a token for `subject` that expires after `lifetime` seconds."""
        now = int(time.time())
        claims = {
            "sub": subject,
            "scope": " ".join(sorted(scopes)),
            "iat": now,
            "exp": now + (self._lifetime if lifetime is None else lifetime),
        }
        return jwt.encode(claims, self._key, self._algorithm)

    def verify(self, token: str) -> Principal:
        """Return the token's principal or raise UnauthorizedError; why it failed is not told apart."""
        try:
            claims = jwt.decode(
                token, self._key, algorithms=[self._algorithm], options={"require": ["exp", "iat", "sub"]}
            )
            return Principal(claims["sub"], frozenset(str(claims.get("scope", "")).split()))
        except jwt.InvalidTokenError:
            raise UnauthorizedError(
                "The token is not valid or has expired.",
                headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
            ) from None


_bearer = HTTPBearer(auto_error=False, bearerFormat="JWT", description="A token from `app.manage token`.")


def require_scope(scope: str) -> Callable[..., Awaitable[Principal]]:
    """Return the dependency that lets a request pass only with a valid token for `scope`."""

    async def authorize(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Principal:
        if credentials is None:
            raise UnauthorizedError("This needs a bearer token.", headers={"WWW-Authenticate": "Bearer"})
        tokens: Tokens = request.app.state.tokens
        principal = tokens.verify(credentials.credentials)
        request.state.user = principal.subject
        if scope not in principal.scopes:
            raise ForbiddenError(
                f"The token does not carry the scope {scope}.",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
            )
        return principal

    return authorize
