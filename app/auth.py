"""Bearer tokens: signed, expiring JWTs with scopes."""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import jwt
from fastapi import HTTPException, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field, ValidationError

from app.errors import UnavailableError
from app.settings import Settings

WRITE_PRODUCTS = "products:write"
READ_OPERATIONS = "operations:read"
CLEAR_CACHE = "cache:clear"
SCOPES = (WRITE_PRODUCTS, READ_OPERATIONS, CLEAR_CACHE)
MAX_CACHED_TOKENS = 1000
REQUIRED_CLAIMS: Any = {"require": ["exp", "iat", "sub"]}
CLOCK_SKEW_SECONDS = 5  # the issuing host's clock may be ahead
# What PyJWT raises for claims of a type that it does not expect, besides its own errors.
ODD_CLAIMS = (TypeError, ValueError, OverflowError, RecursionError)


class UnauthorizedError(HTTPException):
    """401 with a WWW-Authenticate challenge."""

    def __init__(self, detail: str, challenge: str = "Bearer") -> None:
        super().__init__(401, detail, {"WWW-Authenticate": challenge})


def invalid_token() -> UnauthorizedError:
    """Return the error for every unacceptable token; the client does not learn the reason."""
    return UnauthorizedError("The token is not valid or has expired.", 'Bearer error="invalid_token"')


@dataclass(frozen=True, slots=True)
class Principal:
    """The subject and scopes of a token; `user_id` is None if an operator issued it."""

    subject: str
    scopes: frozenset[str]
    user_id: int | None
    issued_at: float


class Claims(BaseModel, strict=True):
    """The claims that the service uses; the type of each is part of what makes a token valid."""

    sub: str = Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
    scope: str = ""
    uid: int | None = Field(None, ge=1, le=2**63 - 1)
    iat: float = Field(allow_inf_nan=False)
    exp: float = Field(allow_inf_nan=False)


class Tokens:
    """Signs tokens with SECRET_KEY; verifies them with SECRET_KEY and ACCEPTED_SECRET_KEYS."""

    def __init__(self, settings: Settings) -> None:
        self._signing_key = settings.secret_key.get_secret_value()
        self._verification_keys = settings.verification_keys
        self._algorithm = settings.token_algorithm
        self._lifetime = settings.token_lifetime_seconds
        # The result of a signature check never changes; the expiry is checked at each call.
        self._decode_cached = lru_cache(MAX_CACHED_TOKENS)(self._decode)

    def issue(
        self,
        subject: str,
        scopes: frozenset[str],
        lifetime: int | None = None,
        user_id: int | None = None,
        issued_at: int | None = None,
    ) -> str:
        """Return a token for `subject`, valid for `lifetime` seconds from `issued_at` (default: now)."""
        issued_at = issued_at or int(time.time())
        claims = {
            "sub": subject,
            "scope": " ".join(sorted(scopes)),
            "iat": issued_at,
            "exp": issued_at + (lifetime or self._lifetime),
            "uid": user_id,
        }
        if not self._signing_key:  # not in production: settings require SECRET_KEY there
            raise UnavailableError("SECRET_KEY is not set, so tokens cannot be signed.")
        return jwt.encode(claims, self._signing_key, self._algorithm)

    def verify(self, token: str) -> Principal:
        """Return the principal of a valid token or raise UnauthorizedError."""
        principal, expires_at = self._decode_cached(token)
        if expires_at <= time.time():
            raise invalid_token()
        return principal

    def _decode(self, token: str) -> tuple[Principal, float]:
        for key in self._verification_keys:
            try:
                found = jwt.decode(token, key, [self._algorithm], REQUIRED_CLAIMS, leeway=CLOCK_SKEW_SECONDS)
                claims = Claims.model_validate(found)
            except jwt.InvalidSignatureError:
                continue
            except (jwt.InvalidTokenError, ValidationError, *ODD_CLAIMS):
                break
            scopes = frozenset(claims.scope.split())
            return Principal(claims.sub, scopes, claims.uid, claims.iat), claims.exp
        raise invalid_token()


async def authorize(request: Request, scope: str) -> Principal:
    """Return the principal of a request; raise 401 without a valid token, 403 without the scope."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError("The request requires a bearer token.")
    tokens: Tokens = request.app.state.tokens
    principal: Principal = await request.app.state.users.check(tokens.verify(token))
    request.state.user = principal.subject
    if scope not in principal.scopes:
        challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
        raise HTTPException(403, f"The token lacks the scope {scope}.", challenge)
    return principal


# Only documents the scheme; `authorize` checks the token.
bearer = HTTPBearer(
    bearerFormat="JWT", description="A token from the sign-in route or `app.manage token`.", auto_error=False
)


def require_scope(scope: str) -> Any:
    """Return a dependency that requires a scope and documents it in OpenAPI."""

    async def guard(request: Request, _: Annotated[Any, Security(bearer)]) -> Principal:
        return await authorize(request, scope)

    return Security(guard, scopes=[scope])
