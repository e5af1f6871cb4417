"""Users sign in with a password; an operator can disable them or change their password and scopes."""

import asyncio
import io
import threading
import time
from collections.abc import Callable
from secrets import token_hex
from typing import Any

import httpx
import jwt
import pytest

from app.auth import READ_OPERATIONS, WRITE_PRODUCTS, Tokens
from app.errors import UnavailableError
from app.settings import Settings
from app.users import service as users_service
from app.users.models import User
from app.users.repository import UserRepository

URL = "/api/v1/products"
SIGN_IN = "/api/v1/auth/token"
PASSWORD = "correct horse battery"
PRODUCT = {"name": "Lamp", "category": "light", "price": "1"}
NEW_KEY = "pV7nK2sX9dQ4jL6wE1rT8yU3iO5aZ0bHcGfMqN"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that sets the command's standard input to one line."""
    return lambda line: monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\n"))


@pytest.fixture
def add(run_manage: Run, type_in: Callable[[str], None]) -> Callable[..., str]:
    """Return a function that adds a user with app.manage and returns the name."""

    def add(*scopes: str, name: str = "", password: str = PASSWORD, options: tuple[str, ...] = ()) -> str:
        name = name or f"user-{token_hex(4)}"
        type_in(password)
        arguments = [part for scope in scopes for part in ("--scope", scope)]
        assert run_manage("user-add", name, *arguments, *options) == (0, "", "")
        return name

    return add


@pytest.fixture(autouse=True)
def _recheck_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users_service, "RECHECK_SECONDS", 0)


async def sign_in(
    client: httpx.AsyncClient, name: str, password: str = PASSWORD, **more: str
) -> httpx.Response:
    return await client.post(SIGN_IN, json={"username": name, "password": password} | more)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_user_signs_in_and_writes(
    client: httpx.AsyncClient, add: Callable[..., str], access_lines: list[dict[str, Any]]
) -> None:
    name = add(WRITE_PRODUCTS, READ_OPERATIONS)
    answer = await sign_in(client, name)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    token = answer.json()
    assert (token["token_type"], token["expires_in"]) == ("bearer", 3600)
    assert token["scope"] == f"{READ_OPERATIONS} {WRITE_PRODUCTS}"
    written = await client.post(URL, json=PRODUCT, headers=bearer(token["access_token"]))
    assert written.status_code == 201
    assert [line["user"] for line in access_lines[-2:]] == [name, name]
    assert PASSWORD not in str(access_lines)

    fewer = (await sign_in(client, name, scope=f"{READ_OPERATIONS} everything")).json()
    assert fewer["scope"] == READ_OPERATIONS
    refused = await client.post(URL, json=PRODUCT, headers=bearer(fewer["access_token"]))
    assert refused.status_code == 403


async def test_a_wrong_name_and_a_wrong_password_are_indistinguishable(
    client: httpx.AsyncClient, add: Callable[..., str]
) -> None:
    name = add()
    started = time.monotonic()
    wrong_password = await sign_in(client, name, "not the password")
    halfway = time.monotonic()
    wrong_name = await sign_in(client, "nobody", PASSWORD)
    ended = time.monotonic()
    assert wrong_password.status_code == wrong_name.status_code == 401
    assert wrong_password.headers["www-authenticate"] == "Bearer"
    assert wrong_password.json()["detail"] == wrong_name.json()["detail"]
    assert 0.1 < (halfway - started) / (ended - halfway) < 10


@pytest.mark.parametrize(
    "body",
    [{}, {"username": "a"}, {"username": "a\x00", "password": "x"}, {"username": "a", "password": ""}, []],
)
async def test_malformed_credentials_are_refused(client: httpx.AsyncClient, body: Any) -> None:
    assert (await client.post(SIGN_IN, json=body)).status_code == 422


async def test_a_long_sign_in_body_is_refused_before_validation(client: httpx.AsyncClient) -> None:
    """Each unknown field is an error; validating all of them would block the worker."""
    body = {f"k{number}": 0 for number in range(90_000)}
    started = time.process_time()
    answer = await client.post(SIGN_IN, json=body)
    assert (answer.status_code, time.process_time() - started < 0.3) == (413, True)


async def test_a_disabled_user_is_refused_immediately(
    client: httpx.AsyncClient, add: Callable[..., str], run_manage: Run
) -> None:
    name = add()
    headers = bearer((await sign_in(client, name)).json()["access_token"])
    assert (await client.post(URL, json=PRODUCT, headers=headers)).status_code == 201
    assert run_manage("user-disable", name) == (0, "", "")
    assert (await client.post(URL, json=PRODUCT, headers=headers)).status_code == 401
    assert (await sign_in(client, name)).status_code == 401
    assert f"{name} disabled {WRITE_PRODUCTS}\n" in run_manage("user-list")[1]


async def test_a_new_password_invalidates_old_tokens_and_scopes(
    client: httpx.AsyncClient, add: Callable[..., str], service: Callable[..., Settings]
) -> None:
    name = add()
    first = jwt.decode(
        (await sign_in(client, name)).json()["access_token"], options={"verify_signature": False}
    )
    add(READ_OPERATIONS, name=name, password=PASSWORD * 2, options=("--replace",))
    assert (await sign_in(client, name)).status_code == 401
    headers = bearer((await sign_in(client, name, PASSWORD * 2)).json()["access_token"])
    assert (await client.post(URL, json=PRODUCT, headers=headers)).status_code == 403
    settings = service()
    key = settings.secret_key.get_secret_value()
    # A token of the same second, and one of an unknown user.
    for change in ({}, {"uid": 2**62}):
        token = jwt.encode(first | change, key, "HS256")
        assert (await client.post(URL, json=PRODUCT, headers=bearer(token))).status_code == 401
    # A scope removed from the user is removed from valid tokens too.
    token = jwt.encode(first | {"iat": int(time.time()) + 1}, key, "HS256")
    assert (await client.post(URL, json=PRODUCT, headers=bearer(token))).status_code == 403


async def test_an_in_flight_sign_in_counts_for_the_old_password(
    client: httpx.AsyncClient, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, matches = add(), users_service._matches

    def replaced_meanwhile(hashed: str, password: str) -> bool:
        add(name=name, password=PASSWORD * 2, options=("--replace",))
        return matches(hashed, password)

    monkeypatch.setattr(users_service, "_matches", replaced_meanwhile)
    headers = bearer((await sign_in(client, name)).json()["access_token"])
    assert (await client.post(URL, json=PRODUCT, headers=headers)).status_code == 401


async def test_disconnected_sign_ins_still_count_towards_the_hash_limit(
    client: httpx.AsyncClient, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, go_on, hashing = add(), threading.Event(), threading.Semaphore(0)
    begun: list[str] = []

    # A sign-in whose user is found waits for a thread.
    find, found = UserRepository.find, asyncio.Semaphore(0)

    async def finding(repository: UserRepository, name: str) -> User | None:
        user = await find(repository, name)
        found.release()
        return user

    def slow(_hashed: str, password: str) -> bool:
        begun.append(password)
        hashing.release()
        return go_on.wait(5)

    monkeypatch.setattr(users_service, "_matches", slow)
    monkeypatch.setattr(UserRepository, "find", finding)
    requests = [asyncio.ensure_future(sign_in(client, name, f"{number}")) for number in range(4)]
    try:
        assert await asyncio.to_thread(hashing.acquire, timeout=10)
        async with asyncio.timeout(10):
            for _ in requests:
                await found.acquire()
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        last = asyncio.ensure_future(sign_in(client, name, "last"))
        await asyncio.sleep(0.3)
        assert len(begun) == 1
    finally:
        go_on.set()
    assert (await last).status_code == 200
    assert begun[1:] == ["last"]


async def test_a_user_lookup_is_cached(
    client: httpx.AsyncClient, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users_service, "RECHECK_SECONDS", 60)
    monkeypatch.setattr(users_service, "MAX_CACHED_USERS", 1)
    for name in (add(), add()):
        headers = bearer((await sign_in(client, name)).json()["access_token"])
        for _ in range(3):
            assert (await client.post(URL, json=PRODUCT, headers=headers)).status_code == 201
    assert (
        'database_query_duration_seconds_count{query="users.read"} 2.0' in (await client.get("/metrics")).text
    )


@pytest.mark.parametrize(
    ("name", "password", "message"),
    [
        ("Ann", PASSWORD, "lower-case"),
        ("a b", PASSWORD, "lower-case"),
        ("ann", "short", "12 to 256"),
        ("ann", "x" * 257, "12 to 256"),
    ],
)
def test_an_invalid_name_or_password_is_refused(
    run_manage: Run, type_in: Callable[[str], None], name: str, password: str, message: str
) -> None:
    type_in(password)
    status, out, err = run_manage("user-add", name)
    assert (status, out) == (1, "")
    assert message in err
    assert password not in err


def test_a_taken_and_an_unknown_name_are_reported(
    run_manage: Run, add: Callable[..., str], type_in: Callable[[str], None]
) -> None:
    name = add()
    type_in(PASSWORD)
    assert run_manage("user-add", name)[0] == 1
    assert run_manage("user-disable", "nobody") == (1, "", "There is no user nobody.\n")


def test_a_terminal_prompts_without_echo(
    run_manage: Run, monkeypatch: pytest.MonkeyPatch, type_in: Callable[[str], None]
) -> None:
    type_in("")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("app.manage.getpass", lambda: PASSWORD)
    assert run_manage("user-add", f"user-{token_hex(4)}")[0] == 0


def test_a_key_rotation_keeps_tokens_valid(service: Callable[..., Settings]) -> None:
    old = Tokens(service())
    token = old.issue("ann", frozenset())
    current = service().secret_key.get_secret_value()
    rotated = Tokens(service(SECRET_KEY=NEW_KEY, ACCEPTED_SECRET_KEYS=f"{current}, {current[::-1]}"))
    assert rotated.verify(token).subject == "ann"
    before_ids = jwt.encode(
        {"sub": "bob", "iat": int(time.time()), "exp": int(time.time()) + 60}, current, "HS256"
    )
    assert rotated.verify(before_ids).subject == "bob"
    ended = Tokens(service(SECRET_KEY=NEW_KEY, ACCEPTED_SECRET_KEYS=""))
    for gone in (token, before_ids):
        with pytest.raises(Exception, match="not valid"):
            ended.verify(gone)


def test_without_a_key_no_token_is_valid(service: Callable[..., Settings]) -> None:
    tokens = Tokens(service(ENVIRONMENT="testing", SECRET_KEY=""))
    with pytest.raises(Exception, match="not valid"):
        tokens.verify(jwt.encode({"sub": "a", "iat": 1, "exp": 2**40}, NEW_KEY, "HS256"))
    with pytest.raises(UnavailableError, match="SECRET_KEY"):
        tokens.issue("a", frozenset())
