from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.security import OAuth2PasswordRequestForm

from app import crud
from app.api.deps import CurrentUser, SessionDep
from app.core.security import create_access_token
from app.models import Token

router = APIRouter(prefix="/login", tags=["login"])


@router.post("/access-token")
def login_access_token(session: SessionDep, form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> Token:
    user = crud.authenticate(session, form.username, form.password)
    if user is None:
        raise HTTPException(400, "Incorrect email or password")
    return Token(access_token=create_access_token(str(user.id)))


@router.post("/test-token")
def test_token(user: CurrentUser) -> dict[str, str]:
    return {"email": user.email}
