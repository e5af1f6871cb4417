"""Signing in over HTTP; the public edge limits how often."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.errors import problems
from app.users.service import MAXIMUM_PASSWORD_LENGTH, UserService

LONGEST_BODY = 16_384


async def _check_length(request: Request) -> None:
    """Refuse a long body before each of its faults is looked for, which anybody could ask for."""
    if len(await request.body()) > LONGEST_BODY:
        raise HTTPException(413, f"A sign-in has at most {LONGEST_BODY} bytes.")


router = APIRouter(
    prefix="/api/v1/auth",
    tags=["auth"],
    responses=problems(400, 401, 413, 422, 503),
    dependencies=[Depends(_check_length)],
)

# Postgres text cannot hold NUL, and no name has a control character.
Username = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Credentials(BaseModel):
    """A name, a password, and the scopes wanted, separated by spaces; without them all of the user's."""

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
    wanted = frozenset(credentials.scope.split())
    token, scopes = await users.sign_in(credentials.username, credentials.password, wanted)
    request.state.user = credentials.username
    response.headers["Cache-Control"] = "no-store"
    lifetime = request.app.state.settings.token_lifetime_seconds
    return Token(access_token=token, expires_in=lifetime, scope=" ".join(sorted(scopes)))
