from typing import Annotated

import asyncpg
from fastapi import APIRouter, Depends, HTTPException, status
from fastapi.concurrency import run_in_threadpool
from fastapi.security import OAuth2PasswordRequestForm
from pydantic import BaseModel, Field

from app.api.dependencies import Connection, CurrentUser
from app.core.security import create_access_token, hash_password, verify_password

router = APIRouter(prefix="/users")


class NewUser(BaseModel):
    username: str = Field(min_length=3, max_length=50)
    password: str = Field(min_length=8, max_length=72)


class User(BaseModel):
    username: str


@router.post("", status_code=status.HTTP_201_CREATED)
async def register(new: NewUser, connection: Connection) -> User:
    hashed = await run_in_threadpool(hash_password, new.password)
    try:
        await connection.execute(
            "INSERT INTO accounts.users (username, password) VALUES ($1, $2)", new.username, hashed
        )
    except asyncpg.UniqueViolationError:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "The user name is taken") from None
    return User(username=new.username)


@router.post("/login")
async def login(
    form: Annotated[OAuth2PasswordRequestForm, Depends()], connection: Connection
) -> dict[str, str]:
    hashed = await connection.fetchval(
        "SELECT password FROM accounts.users WHERE username = $1", form.username
    )
    if hashed is None or not await run_in_threadpool(verify_password, form.password, hashed):
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "Incorrect user name or password")
    return {"access_token": create_access_token(form.username), "token_type": "bearer"}


@router.get("/me")
async def me(user: CurrentUser) -> User:
    return User(username=user["username"])
