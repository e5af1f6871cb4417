"""HTTP endpoint to sign in; the edge limits its rate."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.errors import problems
from app.users.service import MAXIMUM_PASSWORD_LENGTH, UserService

MAX_BODY_BYTES = 16_384


async def _check_length(request: Request) -> None:
    """Refuse a long body before validation: listing its errors would block the worker."""
    if len(await request.body()) > MAX_BODY_BYTES:
        raise HTTPException(413, f"The request body exceeds {MAX_BODY_BYTES} bytes.")


router = APIRouter(
    prefix="/api/v1/auth",
    tags=["auth"],
    responses=problems(400, 401, 413, 422, 503),
    dependencies=[Depends(_check_length)],
)

# No control characters; Postgres text cannot hold NUL.
Username = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Credentials(BaseModel):
    """A name, a password, and the requested scopes, separated by spaces (default: all of the user's)."""

    model_config = ConfigDict(extra="forbid")

    username: Username
    password: str = Field(min_length=1, max_length=MAXIMUM_PASSWORD_LENGTH)
    scope: str = Field("", max_length=1000)


class Token(BaseModel):
    """A bearer token."""

    access_token: str
    token_type: str = Field("bearer", pattern="^bearer$")
    expires_in: int
    scope: str


@router.post("/token")
async def sign_in(request: Request, response: Response, credentials: Credentials) -> Token:
    """Exchange a name and a password for a bearer token."""
    users: UserService = request.app.state.users
    requested = frozenset(credentials.scope.split())
    token, scopes = await users.sign_in(credentials.username, credentials.password, requested)
    request.state.user = credentials.username
    response.headers["Cache-Control"] = "no-store"
    lifetime = request.app.state.settings.token_lifetime_seconds
    return Token(access_token=token, expires_in=lifetime, scope=" ".join(sorted(scopes)))
