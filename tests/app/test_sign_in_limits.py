"""Guesses of passwords: the limit for each account, and the queue of checks."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from secrets import token_hex
from typing import Any

import httpx
import pytest

from app.users import service as users_service
from app.users.attempts import SignInAttempts, network_of
from app.users.checks import QUEUE_LIMITS, Checks, Overloaded, Rank
from tests.app.conftest import ask_superuser

SIGN_IN = "/api/v1/auth/token"
PASSWORD = "correct horse battery"
HOME, ELSEWHERE = "192.0.2.1", "203.0.113.{}"


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare without a hash: the limit does not depend on its time."""
    monkeypatch.setattr(users_service, "_matches", lambda _hashed, password: password == PASSWORD)


@pytest.fixture
def name(run_manage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a new user."""
    name = f"user-{token_hex(4)}"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("app.manage.getpass", lambda: PASSWORD)
    assert run_manage("user-add", name) == (0, "", "")
    return name


async def sign_in(
    client: httpx.AsyncClient, name: str, password: str = PASSWORD, address: str = HOME
) -> httpx.Response:
    """Sign in from an address, as the edge reports it."""
    body = {"username": name, "password": password}
    return await client.post(SIGN_IN, json=body, headers={"X-Forwarded-For": address})


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize("exists", [True, False])
async def test_an_account_has_its_limit_on_all_workers_and_for_all_addresses(
    start: Callable[..., Any], name: str, exists: bool
) -> None:
    workers = [await start(), await start()]
    target = name if exists else f"user-{token_hex(4)}"
    statuses = [
        (await sign_in(workers[number % 2], target, "wrong", ELSEWHERE.format(number))).status_code
        for number in range(30)
    ]
    assert statuses == [401] * 5 + [429] * 25
    refused = await sign_in(workers[0], target, PASSWORD, ELSEWHERE.format(99))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert refused.headers["content-type"] == "application/problem+json"


@pytest.mark.usefixtures("_fast")
async def test_parallel_guesses_do_not_pass_the_limit_together(start: Callable[..., Any], name: str) -> None:
    clients = [await start() for _ in range(3)]
    guesses = [sign_in(clients[n % 3], name, f"{n}", ELSEWHERE.format(n)) for n in range(60)]
    statuses = [answer.status_code for answer in await asyncio.gather(*guesses)]
    assert set(statuses) <= {401, 429, 503}
    assert 1 <= statuses.count(401) <= 5


@pytest.mark.usefixtures("_fast")
async def test_guesses_from_elsewhere_do_not_lock_a_user_out(client: httpx.AsyncClient, name: str) -> None:
    assert (await sign_in(client, name)).status_code == 200
    for number in range(8):
        await sign_in(client, name, "wrong", ELSEWHERE.format(number))
    for _ in range(20):
        assert (await sign_in(client, name)).status_code == 200
    # Both budgets together admit ten.
    mistyped = [(await sign_in(client, name, "wrong")).status_code for _ in range(7)]
    assert mistyped == [401] * 5 + [429] * 2
    assert (await sign_in(client, name)).status_code == 429


@pytest.mark.usefixtures("_fast")
async def test_a_limit_ends_after_a_minute(
    client: httpx.AsyncClient, name: str, run_manage: Callable[..., Any]
) -> None:
    for number in range(6):
        answer = await sign_in(client, name, "wrong", ELSEWHERE.format(number))
    assert answer.status_code == 429
    earlier = "ARRAY(SELECT t - interval '61 s' FROM unnest(failed_at) AS t)"
    database = client.app.state.database  # type: ignore[attr-defined]
    age = f"UPDATE sign_in_attempts SET failed_at = {earlier} WHERE name = $1"
    await database.execute("test", age, name)
    assert (await sign_in(client, name, address=ELSEWHERE.format(0))).status_code == 200
    await database.execute("test", age.replace("61 s", "1 hour"), name)
    assert run_manage("purge")[0] == 0
    count = "SELECT count(*) FROM sign_in_attempts WHERE name = $1"
    assert (await database.fetch("test", count, name))[0][0] == 0


@pytest.mark.usefixtures("_fast")
async def test_a_new_password_forgets_the_known_networks(
    client: httpx.AsyncClient, name: str, run_manage: Callable[..., Any]
) -> None:
    await sign_in(client, name)
    attempts = SignInAttempts(client.app.state.database)  # type: ignore[attr-defined]
    assert await attempts.state(name, network_of(HOME)) == (True, False)
    assert run_manage("user-add", name, "--replace") == (0, "", "")
    assert await attempts.state(name, network_of(HOME)) == (False, False)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::", "2001:db8::/64"),
        ("", ""),
    ],
)
def test_the_network_of_a_client(address: str, network: str) -> None:
    assert network_of(address) == network


class Blocked:
    """A check that waits until it may end."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.order: list[str] = []

    def __call__(self, name: str) -> str:
        self.order.append(name)
        assert self.go_on.wait(5)
        return name


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    check = Blocked()
    yield check
    check.go_on.set()


async def test_the_queue_is_bounded_and_refuses_at_once(blocked: Blocked) -> None:
    checks = Checks()
    tasks = [asyncio.ensure_future(checks.run(Rank.NEW, blocked, "first"))]
    await asyncio.sleep(0.05)
    for rank in (Rank.SUSPECT, Rank.NEW, Rank.KNOWN):
        tasks += [
            asyncio.ensure_future(checks.run(rank, blocked, rank.name))
            for _ in range(QUEUE_LIMITS[rank] - len(tasks) + 1)
        ]
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        with pytest.raises(Overloaded):
            await checks.run(rank, blocked, "refused")
        assert time.monotonic() - begun < 0.1
    blocked.go_on.set()
    await asyncio.gather(*tasks)
    assert blocked.order == ["first"] + ["KNOWN"] * 4 + ["NEW"] * 2 + ["SUSPECT"] * 2


async def test_a_cancelled_check_gives_its_turn_to_the_next(blocked: Blocked) -> None:
    checks = Checks()
    tasks = [asyncio.ensure_future(checks.run(Rank.KNOWN, blocked, f"{number}")) for number in range(4)]
    await asyncio.sleep(0.05)
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.sleep(0.05)
    assert blocked.order == ["0"]
    blocked.go_on.set()
    await asyncio.sleep(0)
    tasks[2].cancel()
    assert await tasks[3] == "3"
    assert await checks.run(Rank.SUSPECT, blocked, "later") == "later"


async def test_a_check_that_waits_too_long_is_refused(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.users.checks.MAX_WAIT_SECONDS", 0.05)
    checks = Checks()
    first = asyncio.ensure_future(checks.run(Rank.NEW, blocked, "first"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await checks.run(Rank.NEW, blocked, "second")
    blocked.go_on.set()
    assert await first == "first"
    assert await checks.run(Rank.NEW, blocked, "third") == "third"


async def test_an_overloaded_worker_answers_503_and_counts_no_attempt(
    client: httpx.AsyncClient, name: str, blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users_service, "_matches", lambda _hashed, password: bool(blocked(password)))
    waiting = [
        asyncio.ensure_future(sign_in(client, f"user-{token_hex(4)}", "wrong", ELSEWHERE.format(number)))
        for number in range(5)
    ]
    await asyncio.sleep(0.3)
    begun = time.monotonic()
    refused = [await sign_in(client, name, "wrong", ELSEWHERE.format(9)) for _ in range(7)]
    assert (time.monotonic() - begun) / 7 < 0.1
    assert {answer.status_code for answer in refused} == {503}
    assert refused[0].headers["retry-after"] == "2"
    blocked.go_on.set()
    await asyncio.gather(*waiting)
    assert (await sign_in(client, name, address=ELSEWHERE.format(9))).status_code == 200


def test_the_serving_role_may_not_write_users_and_revisions(migrated: dict[str, str]) -> None:
    role = migrated["DATABASE_URL"].split("//")[1].partition("@")[0]
    database = migrated["DATABASE_URL"].rpartition("/")[2]
    held = (
        "SELECT string_agg(privilege, ' ' ORDER BY privilege)"
        " FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS privilege"
        " WHERE has_table_privilege('{role}', '{table}', privilege)"
    )
    found = {
        table: ask_superuser(held.format(role=role, table=table), database)
        for table in ("users", "alembic_version", "cache_epochs", "sign_in_attempts", "products")
    }
    every = "DELETE INSERT SELECT UPDATE"
    assert found == {
        "users": "SELECT",
        "alembic_version": "SELECT",
        "cache_epochs": "INSERT SELECT UPDATE",
        "sign_in_attempts": every,
        "products": every,
    }


def test_without_the_owners_password_users_cannot_be_written(
    run_manage: Callable[..., Any], name: str
) -> None:
    for arguments in (("user-add", "mallory"), ("user-disable", name)):
        status, out, err = run_manage(*arguments, DATABASE_OWNER_PASSWORD="")
        assert (status, out) == (1, "")
        assert "permission denied for table users" in err
        assert "Run the command on the host that migrates" in err
