"""Writes need a valid, unexpired token with the scope; reads need none."""

import json
import time
from collections.abc import Callable

import httpx
import jwt
import pytest

from app.auth import Tokens, UnauthorizedError
from app.settings import Settings

URL = "/api/v1/products"
SECRET = "Zk3vQ9xN7mB2wL5tR8yU1cP4aH6jD0fGsTeXoV"
PRODUCT = {"name": "Lamp", "category": "light", "price": "1"}
ODD_TIMES: list[object] = [float("inf"), float("-inf"), float("nan"), "9999999999", [1], {}, 10**400]
WRITES = [("POST", URL), ("PUT", f"{URL}/1"), ("PATCH", f"{URL}/1"), ("DELETE", f"{URL}/1")]


def signed(key: str = SECRET, algorithm: str = "HS256", **changes: object) -> str:
    now = int(time.time())
    claims = {"sub": "ann", "scope": "products:write", "iat": now, "exp": now + 60} | changes
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm)


@pytest.mark.parametrize(("method", "url"), WRITES)
async def test_a_write_without_a_token_is_refused(client: httpx.AsyncClient, method: str, url: str) -> None:
    answer = await client.request(method, url, json=PRODUCT)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "token",
    [
        "nonsense",
        signed(key="another-key-of-sufficient-length-0987"),
        signed(algorithm="HS512", key=SECRET * 2),
        signed(exp=int(time.time()) - 1),
        signed(exp=None),
        signed(sub=None),
        signed(sub=7),
        signed(iat=int(time.time()) + 3600),
        jwt.encode({"sub": "ann", "exp": int(time.time()) + 60}, "", "none"),
        signed()[:-3] + "abc",
    ],
)
@pytest.mark.parametrize(("method", "url"), WRITES)
async def test_a_token_that_does_not_verify_is_refused(
    client: httpx.AsyncClient, method: str, url: str, token: str
) -> None:
    answer = await client.request(method, url, json=PRODUCT, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("scope", 7),
        ("scope", ["products:write"]),
        ("scope", {"products:write": 1}),
        ("scope", True),
        *(("uid", odd) for odd in ("1", 1.5, [1], 0, -1, 2**63, 2**100, float("inf"))),
        *(("sub", odd) for odd in ("ann\x00", "ann\n", "a" * 201, ["ann"])),
        *(("iat", odd) for odd in ODD_TIMES),
        *(("exp", odd) for odd in ODD_TIMES),
        ("nbf", float("inf")),
        ("nbf", [1]),
        ("aud", 7),
        ("jti", 7),
    ],
)
async def test_a_signed_token_with_odd_claims_is_refused(
    client: httpx.AsyncClient, claim: str, value: object
) -> None:
    """Another program that has the key may sign anything."""
    body = json.dumps(
        {"sub": "ann", "scope": "products:write", "iat": 1, "exp": 2**40} | {claim: value}
    ).encode()
    token = jwt.api_jws.encode(body, SECRET, "HS256")
    answer = await client.post(URL, json=PRODUCT, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401, answer.text
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_a_signed_token_that_is_no_object_is_refused(client: httpx.AsyncClient) -> None:
    for body in (b"[]", b"7", b"null", b"{", b'{"a":' * 100_000, b"\xff"):
        token = jwt.api_jws.encode(body, SECRET, "HS256")
        answer = await client.post(URL, json=PRODUCT, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401, body[:20]


@pytest.mark.parametrize("scope", ["", "products:read", "products:writes", None])
@pytest.mark.parametrize(("method", "url"), WRITES)
async def test_a_token_without_the_scope_is_forbidden(
    client: httpx.AsyncClient, method: str, url: str, scope: str | None
) -> None:
    answer = await client.request(
        method, url, json=PRODUCT, headers={"Authorization": f"Bearer {signed(scope=scope)}"}
    )
    assert answer.status_code == 403
    assert 'scope="products:write"' in answer.headers["www-authenticate"]


async def test_a_scheme_other_than_bearer_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=PRODUCT, headers={"Authorization": "Basic YTpi"})
    assert answer.status_code == 401


async def test_reads_need_no_token(client: httpx.AsyncClient) -> None:
    assert (await client.get(URL, headers={"Authorization": "Bearer nonsense"})).status_code == 200


def test_algorithm_and_lifetime_come_from_the_settings(service: Callable[..., Settings]) -> None:
    tokens = Tokens(service(TOKEN_ALGORITHM="HS512", TOKEN_LIFETIME_SECONDS="5", SECRET_KEY=SECRET * 2))
    token = tokens.issue("ann", frozenset({"b", "a"}))
    assert jwt.get_unverified_header(token)["alg"] == "HS512"
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 5
    assert claims["scope"] == "a b"
    assert tokens.verify(token).scopes == {"a", "b"}


def test_a_cached_token_still_expires(
    service: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(service())
    token = tokens.issue("ann", frozenset(), lifetime=60)
    assert tokens.verify(token).subject == "ann"
    now = time.time()
    monkeypatch.setattr("app.auth.time.time", lambda: now + 61)
    with pytest.raises(UnauthorizedError):
        tokens.verify(token)
