from collections.abc import AsyncIterator
from typing import Annotated

import asyncpg
import jwt
from fastapi import Depends, HTTPException, Request, status
from fastapi.security import OAuth2PasswordBearer

from app.core.security import read_access_token


async def get_connection(request: Request) -> AsyncIterator[asyncpg.Connection]:
    async with request.app.state.pool.acquire() as connection:
        yield connection


Connection = Annotated[asyncpg.Connection, Depends(get_connection)]
Token = Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="api/users/login"))]


async def get_current_user(connection: Connection, token: Token) -> asyncpg.Record:
    try:
        username = read_access_token(token)
    except jwt.PyJWTError:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "Could not validate credentials") from None
    user = await connection.fetchrow("SELECT id, username FROM accounts.users WHERE username = $1", username)
    if user is None:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "Could not validate credentials")
    return user


CurrentUser = Annotated[asyncpg.Record, Depends(get_current_user)]
