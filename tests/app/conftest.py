"""Fixtures of the service's tests. They use a real Postgres and Redis, named by TEST_* variables."""

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI

from app import manage
from app.auth import WRITE_PRODUCTS, Tokens
from app.db import Database
from app.main import create_app
from app.metrics import Metrics
from app.redis_link import RedisLink
from app.settings import Settings, load_settings
from app.users.repository import UserRepository
from app.users.service import add_user
from tests.lab import Lab

# The lab whose host `data` runs Postgres and Redis.
SERVERS = Lab("pytest-service")
PSQL = "runuser -u postgres -- psql --no-psqlrc --quiet --tuples-only --no-align --command"
SECRET = "Zk3vQ9xN7mB2wL5tR8yU1cP4aH6jD0fGsTeXoV"
OPTIONAL = (
    "DATABASE_PASSWORD",
    "DATABASE_SSL_CA",
    "DATABASE_OWNER",
    "DATABASE_OWNER_PASSWORD",
    "REDIS_USERNAME",
    "REDIS_PASSWORD",
    "REDIS_SSL_CA",
)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Return the event loop of production."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def service_environment() -> dict[str, str]:
    """Return the environment variables of a service that uses the test's servers."""
    for name in ("TEST_DATABASE_URL", "TEST_REDIS_URL"):
        if not os.environ.get(name):
            pytest.fail(
                f"{name} is not set: run `make test`, which starts a lab host with both.", pytrace=False
            )
    environment = {
        "ENVIRONMENT": "production",
        "RELEASE": "test",
        "SECRET_KEY": SECRET,
        "DATABASE_URL": os.environ["TEST_DATABASE_URL"],
        "DATABASE_POOL_SIZE": "4",
        "REDIS_URL": os.environ["TEST_REDIS_URL"],
        # Unique, so that values of an earlier run are not hit.
        "REDIS_KEY_PREFIX": os.environ.get("TEST_REDIS_KEY_PREFIX", "api:") + f"{token_hex(4)}:",
        "REDIS_RETRY_AFTER": "0.2",
        "REDIS_TIMEOUT": "3",  # a busy test machine must not open the circuit breaker
    }
    environment |= {name: os.environ[f"TEST_{name}"] for name in OPTIONAL if os.environ.get(f"TEST_{name}")}
    return environment


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the developer's environment variables and .env files from the tests."""
    for name in [*Settings.model_fields, "credentials_directory", "prometheus_multiproc_dir"]:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    """Restore logging, which app.manage configures for the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def migrated(service_environment: dict[str, str]) -> dict[str, str]:
    """Return the environment after `app.manage migrate` has brought the database to head."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in service_environment.items():
            patch.setenv(name, value)
        assert manage.main(["migrate"]) == 0
    return service_environment


@pytest.fixture
def service(migrated: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Return a function that loads the settings with some variables changed."""
    # Unique per test: after a downgrade ids start again, and would hit values cached by another test.
    own = {"REDIS_KEY_PREFIX": f"{migrated['REDIS_KEY_PREFIX']}{token_hex(2)}:"}

    def make(**changes: str) -> Settings:
        for name, value in (migrated | own | changes).items():
            monkeypatch.setenv(name, value)
        return load_settings()

    return make


@pytest.fixture
def access_lines() -> list[dict[str, Any]]:
    """Return the list that collects the service's access lines."""
    return []


@pytest.fixture
async def start(
    service: Callable[..., Settings], access_lines: list[dict[str, Any]]
) -> AsyncIterator[Callable[..., Any]]:
    """Start services in this process, each like a worker, and stop them at the end."""
    async with AsyncExitStack() as stack:

        async def make(**changes: str) -> httpx.AsyncClient:
            app = create_app(service(**changes), access_lines.append)
            return await stack.enter_async_context(running(app))

        yield make


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application's lifespan and yield a client of it."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        client.app = app  # type: ignore[attr-defined]
        yield client


@pytest.fixture
async def client(start: Callable[..., Any]) -> httpx.AsyncClient:
    """Return a client of a healthy service."""
    result: httpx.AsyncClient = await start()
    return result


@pytest.fixture
def writer(service: Callable[..., Settings]) -> dict[str, str]:
    """Return the Authorization header of a user who may write products."""
    token = Tokens(service()).issue("ann", frozenset({WRITE_PRODUCTS}), 60)
    return {"Authorization": f"Bearer {token}"}


async def sign_in(client: httpx.AsyncClient, *scopes: str, url: str = "/api/v1/auth/token") -> dict[str, str]:
    """Add a user with these scopes, sign in, and return the Authorization header."""
    settings: Settings = client.app.state.settings  # type: ignore[attr-defined]
    name, password = f"user-{token_hex(4)}", token_hex(8)
    async with aclosing(Database(settings, Metrics("test"), owner=True)) as database:
        assert await add_user(UserRepository(database), name, password, frozenset(scopes), replace=False)
    answer = await client.post(url, json={"username": name, "password": password})
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


@pytest.fixture
def category() -> str:
    """Return a category that no other test uses."""
    return f"category-{token_hex(6)}"


def ask_superuser(statement: str, database: str = "postgres") -> str:
    """Run SQL as superuser and return the unaligned output."""
    return SERVERS.ssh("data", f'{PSQL} "{statement}" {database}').strip()


@contextmanager
def seeing_all(role: str | None) -> Iterator[None]:
    """Grant a role pg_read_all_stats for a block, unless it has it."""
    had = ask_superuser(f"SELECT pg_has_role('{role}', 'pg_read_all_stats', 'USAGE')") == "t"
    ask_superuser(f"GRANT pg_read_all_stats TO {role}")
    try:
        yield
    finally:
        if not had:
            ask_superuser(f"REVOKE pg_read_all_stats FROM {role}")


async def breaker_closed(link: RedisLink) -> None:
    """Wait until the circuit breaker is closed."""
    if link._probe:
        await asyncio.wait_for(asyncio.shield(link._probe), 5)


class Proxy:
    """A loopback port that forwards to a real server and can be closed or made to hang."""

    def __init__(
        self, connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
    ) -> None:
        self._connect = connect
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def hang(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_writer = None
        try:
            far_reader, far_writer = await self._connect()
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            if far_writer is not None:
                far_writer.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture
async def proxy(service_environment: dict[str, str]) -> AsyncIterator[Proxy]:
    """Yield a proxy to the real Redis."""
    target = urlsplit(service_environment["REDIS_URL"])

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if target.scheme == "unix":
            return await asyncio.open_unix_connection(target.path)
        ca = service_environment.get("REDIS_SSL_CA")
        context = ssl.create_default_context(cafile=ca) if target.scheme == "rediss" else None
        return await asyncio.open_connection(target.hostname, target.port or 6379, ssl=context)

    async with proxied(Proxy(connect)) as proxy:
        yield proxy


@asynccontextmanager
async def proxied(proxy: Proxy) -> AsyncIterator[Proxy]:
    await proxy.up()
    yield proxy
    proxy.flow()
    await proxy.down()
    await asyncio.sleep(0.05)  # uvloop closes transports in its next iterations


@pytest.fixture
def run_manage(
    migrated: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs app.manage and returns its exit status, stdout and stderr."""

    def run(*arguments: str, **changes: str) -> tuple[int, str, str]:
        for name, value in (migrated | changes).items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        with ThreadPoolExecutor(1) as pool:  # this thread may run the test's event loop
            status = pool.submit(manage.main, arguments).result()
        out, err = capsys.readouterr()
        return status, out, err

    return run
