"""Operator's command: `python -m app.manage migrate | check | token | user-… | cache-clear | purge | …`."""

import argparse
import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from getpass import getpass
from typing import Any

from fastapi import HTTPException
from sqlalchemy import exc

from app.auth import SCOPES, WRITE_PRODUCTS, Tokens
from app.cache import Cache
from app.db import Database
from app.epoch import Epoch, background_database
from app.health import Health
from app.idempotency import Idempotency
from app.locks import Lock
from app.logging import configure_logging, print_error
from app.metrics import Metrics
from app.migrations import head_revision
from app.migrations.run import current_revision, migrate, plan
from app.redis_link import RedisLink, Unavailable
from app.settings import EXIT_SETTINGS, OperatorError, Settings, load_settings
from app.users.attempts import SignInAttempts
from app.users.repository import UserRepository
from app.users.service import add_user

# A purge extends its lock after each batch, which takes seconds at most.
PURGE_LOCK_SECONDS = 120
INSUFFICIENT_PRIVILEGE = "42501"
PATTERN = re.compile(r"[!-~]{1,200}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, return its exit status; results go to standard output, the rest to standard error."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.secrets())
        logging.getLogger("alembic").setLevel(logging.WARNING)  # app.migrations logs each step
        asyncio.run(options.run(settings, options))
        return 0
    except OperatorError as error:
        message, status = str(error), error.status
    except HTTPException as error:
        message, status = error.detail, 1
    except (OSError, exc.DBAPIError) as error:
        reasons = str(getattr(error, "orig", None) or error).strip().splitlines()
        message, status = f"Database error: {[type(error).__name__, *reasons][-1]}.", 1
        if getattr(getattr(error, "orig", None), "sqlstate", None) == INSUFFICIENT_PRIVILEGE:
            message += " Run the command on the host that migrates: it has the owner's password."
    print_error(message)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="app.manage", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text)
        subparser.set_defaults(run=run)
        return subparser

    step = command("migrate", _migrate, "migrate the database schema to this release's revision")
    step.add_argument(
        "--to", default="head", metavar="REVISION", help="target revision, or base (default: head)"
    )
    step.add_argument(
        "--lock-timeout", type=float, default=0.5, metavar="SECONDS", help="wait for a table lock"
    )
    command("plan", _plan, "print the SQL that migrate would run")
    command("current", _current, "print the revisions of the database and of this release")
    command("check", _check, "check settings, database, schema and cache; exit status 0 if all work")
    token = command("token", _token, "print a bearer token")
    token.add_argument("--subject", required=True, metavar="NAME")
    token.add_argument("--scope", action="append", metavar="SCOPE", help=f"default: {WRITE_PRODUCTS}")
    token.add_argument("--lifetime", type=int, metavar="SECONDS", help="default: TOKEN_LIFETIME_SECONDS")
    user = command("user-add", _user_add, "add a user; reads the password from standard input")
    user.add_argument("name")
    user.add_argument("--scope", action="append", choices=SCOPES, help=f"default: {WRITE_PRODUCTS}")
    user.add_argument(
        "--replace", action="store_true", help="replace an existing user; its tokens become invalid"
    )
    user = command("user-disable", _user_disable, "disable a user and its tokens")
    user.add_argument("name")
    command("user-list", _user_list, "list the users")
    clear = command("cache-clear", _cache_clear, "remove values from the cache and print their number")
    clear.add_argument(
        "pattern", metavar="PATTERN", help="keys in Redis' glob style: product:42, product:*, or * for all"
    )
    command("purge", _purge, "delete expired idempotency keys and sign-in attempts, on one host at a time")
    return parser


async def _token(settings: Settings, options: argparse.Namespace) -> None:
    if not settings.secret_key:
        raise OperatorError("SECRET_KEY is required to sign a token.", EXIT_SETTINGS)
    if options.lifetime is not None and options.lifetime < 1:
        raise OperatorError("The lifetime must be at least one second.", 2)
    scopes = frozenset(options.scope or [WRITE_PRODUCTS])
    print(Tokens(settings).issue(options.subject, scopes, options.lifetime))


async def _migrate(settings: Settings, options: argparse.Namespace) -> None:
    await migrate(settings, options.to, options.lock_timeout)
    await _current(settings, options)


async def _plan(settings: Settings, _options: argparse.Namespace) -> None:
    print(plan(await current_revision(settings)))


async def _current(settings: Settings, _options: argparse.Namespace) -> None:
    print(f"database {await current_revision(settings) or 'base'}, release {head_revision()}")


def _database(settings: Settings, *, owner: bool = False) -> aclosing[Database]:
    return aclosing(Database(settings, Metrics(settings.release), owner=owner))


def _as_owner(settings: Settings) -> aclosing[Database]:
    """Return the database as its owner; without the owner's password, as the serving role."""
    return _database(settings, owner=bool(settings.database_owner_password.get_secret_value()))


async def _user_add(settings: Settings, options: argparse.Namespace) -> None:
    line = getpass() if sys.stdin.isatty() else sys.stdin.readline()
    scopes = frozenset(options.scope or [WRITE_PRODUCTS])
    async with _as_owner(settings) as database:
        if not await add_user(
            UserRepository(database), options.name, line.rstrip("\r\n"), scopes, replace=options.replace
        ):
            raise OperatorError(f"The user {options.name} exists; --replace sets a new password.")


async def _user_disable(settings: Settings, options: argparse.Namespace) -> None:
    async with _as_owner(settings) as database:
        if not await UserRepository(database).disable(options.name):
            raise OperatorError(f"There is no user {options.name}.")


async def _user_list(settings: Settings, _options: argparse.Namespace) -> None:
    async with _database(settings) as database:
        for user in await UserRepository(database).all():
            state = "enabled" if user.enabled else "disabled"
            print(f"{user.name} {state} {','.join(sorted(user.scopes))}")


async def _purge(settings: Settings, _options: argparse.Namespace) -> None:
    async with (
        _database(settings) as database,
        aclosing(RedisLink(settings, Metrics(settings.release))) as link,
    ):
        lock = Lock(link, "purge", PURGE_LOCK_SECONDS)
        # Without Redis, purge without the lock: concurrent purges are safe, only wasteful.
        if not await lock.acquire() and link.available:
            print("another process is purging")
            return
        try:
            purged = await Idempotency(database).purge(lock.extend)
            print(f"purged {purged + await SignInAttempts(database).purge()}")
        finally:
            await lock.release()


@asynccontextmanager
async def _cache(settings: Settings) -> AsyncIterator[Cache]:
    metrics = Metrics(settings.release)
    async with (
        aclosing(background_database(settings, metrics)) as database,
        aclosing(RedisLink(settings, metrics)) as link,
        aclosing(Cache(link, Epoch(database, link.prefix), settings.cache_ttl)) as cache,
    ):
        yield cache


async def _cache_clear(settings: Settings, options: argparse.Namespace) -> None:
    if not PATTERN.fullmatch(options.pattern):
        raise OperatorError(
            "The pattern has 1 to 200 printable ASCII characters without spaces, such as product:* or "
            "product:42; it matches the keys of this service only.",
            2,
        )
    async with _cache(settings) as cache:
        if not cache.enabled:
            raise OperatorError("REDIS_URL is empty: there is no cache.", EXIT_SETTINGS)
        try:
            print(f"cleared {await cache.clear(options.pattern)}")
        except Unavailable as error:
            raise OperatorError(f"Redis failed: {error.__cause__ or 'no connection'}.") from None


async def _check(settings: Settings, _options: argparse.Namespace) -> None:
    async with _database(settings) as database, _cache(settings) as cache:
        ready, checks = await Health(database, cache).report()
    for name, result in checks.items():
        print(f"{name}: {result}")
    # Stricter than readiness: a degraded service can serve, but an operator must know.
    if not ready or checks["cache"] == "failed" or checks["database"] != "ok":
        raise OperatorError("At least one check failed.")


if __name__ == "__main__":
    sys.exit(main())
