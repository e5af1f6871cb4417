"""HTTP endpoint to sign in."""

from typing import Annotated, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.errors import problems
from app.routing import DirectRoute, Input
from app.users.service import MAXIMUM_PASSWORD_LENGTH, UserService

router = APIRouter(
    prefix="/auth",
    tags=["auth"],
    responses=problems(400, 401, 413, 415, 422, 429, 503),
    route_class=DirectRoute,
)

# No control characters; Postgres text cannot hold NUL.
Username = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Credentials(Input):
    """A name, a password, and the requested scopes, separated by spaces (default: all of the user's)."""

    max_bytes: ClassVar[int | None] = 16_384

    username: Username
    password: str = Field(min_length=1, max_length=MAXIMUM_PASSWORD_LENGTH)
    scope: str = Field("", max_length=1000)


class Token(BaseModel):
    """A bearer token."""

    access_token: str
    token_type: str = Field("bearer", pattern="^bearer$")
    expires_in: int
    scope: str


@router.post("/token", response_model=Token)
async def sign_in(request: Request, credentials: Credentials) -> Response:
    """Exchange a name and a password for a bearer token."""
    users: UserService = request.app.state.users
    requested = frozenset(credentials.scope.split())
    client: str = request.state.client
    token, scopes = await users.sign_in(credentials.username, credentials.password, requested, client)
    request.state.user = credentials.username
    lifetime = request.app.state.settings.token_lifetime_seconds
    answer = Token(access_token=token, expires_in=lifetime, scope=" ".join(sorted(scopes)))
    headers = {"Cache-Control": "no-store"}
    return Response(answer.model_dump_json(), headers=headers, media_type="application/json")
