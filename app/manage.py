"""The operator's command: `python -m app.manage migrate | plan | current | check | token | user-… | …`."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from getpass import getpass
from typing import Any

from fastapi import HTTPException
from sqlalchemy import exc

from app.auth import SCOPES, WRITE_PRODUCTS, Tokens
from app.db import Database
from app.health import Health
from app.idempotency import Idempotency
from app.logging import configure_logging
from app.metrics import Metrics
from app.migrations import head_revision
from app.migrations.run import current_revision, migrate, plan
from app.redis_link import RedisLink
from app.settings import EXIT_SETTINGS, OperatorError, Settings, load_settings
from app.users.repository import UserRepository
from app.users.service import UserService


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; results go to standard output, everything else to standard error."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        logging.getLogger("alembic").setLevel(logging.WARNING)  # app.migrations says what happened
        asyncio.run(options.run(settings, options))
        return 0
    except OperatorError as error:
        message, status = str(error), error.status
    except HTTPException as error:
        message, status = error.detail, 1
    except (OSError, exc.DBAPIError) as error:
        reasons = str(getattr(error, "orig", None) or error).strip().splitlines()
        message, status = f"The database refused: {[type(error).__name__, *reasons][-1]}.", 1
    print(message, file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="app.manage", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text)
        subparser.set_defaults(run=run)
        return subparser

    step = command("migrate", _migrate, "bring the database's schema to this release's")
    step.add_argument("--to", default="head", metavar="REVISION", help="another revision, or base")
    step.add_argument("--lock-timeout", type=float, default=0.5, metavar="SECONDS")
    command("plan", _plan, "print what migrate would do, as SQL")
    command("current", _current, "show the database's revision and this release's")
    command("check", _check, "settings, database, schema and cache; status 0 if the service can serve")
    token = command("token", _token, "print a bearer token, and nothing else")
    token.add_argument("--subject", required=True, metavar="NAME")
    token.add_argument("--scope", action="append", metavar="SCOPE", help=f"default: {WRITE_PRODUCTS}")
    token.add_argument("--lifetime", type=int, metavar="SECONDS")
    user = command("user-add", _user_add, "add a user, the password on standard input")
    user.add_argument("name")
    user.add_argument("--scope", action="append", choices=SCOPES, help=f"default: {WRITE_PRODUCTS}")
    user.add_argument("--replace", action="store_true", help="if there is one: new password, old tokens end")
    user = command("user-disable", _user_disable, "refuse a user and the tokens it has")
    user.add_argument("name")
    command("user-list", _user_list, "show the users")
    command("purge", _purge, "forget idempotency keys that no client may repeat any more")
    return parser


async def _token(settings: Settings, options: argparse.Namespace) -> None:
    if not settings.signing_keys:
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


def _database(settings: Settings) -> aclosing[Database]:
    return aclosing(Database(settings, Metrics(settings.release)))


async def _user_add(settings: Settings, options: argparse.Namespace) -> None:
    line = getpass() if sys.stdin.isatty() else sys.stdin.readline()
    scopes = frozenset(options.scope or [WRITE_PRODUCTS])
    async with _database(settings) as database:
        service = UserService(UserRepository(database), Tokens(settings), Metrics(settings.release))
        if not await service.add(options.name, line.rstrip("\r\n"), scopes, replace=options.replace):
            raise OperatorError(f"There is a user {options.name} already: --replace gives it a new password.")


async def _user_disable(settings: Settings, options: argparse.Namespace) -> None:
    async with _database(settings) as database:
        if not await UserRepository(database).disable(options.name):
            raise OperatorError(f"There is no user {options.name}.")


async def _user_list(settings: Settings, _options: argparse.Namespace) -> None:
    async with _database(settings) as database:
        for user in await UserRepository(database).all():
            state = "enabled" if user.enabled else "disabled"
            print(f"{user.name} {state} {','.join(sorted(user.scopes))}")


async def _purge(settings: Settings, _options: argparse.Namespace) -> None:
    async with _database(settings) as database:
        print(f"purged {await Idempotency(database).purge()}")


async def _check(settings: Settings, _options: argparse.Namespace) -> None:
    redis = aclosing(RedisLink(settings, Metrics(settings.release)))
    async with _database(settings) as database, redis as link:
        ready, checks = await Health(database, link).report()
    for name, word in checks.items():
        print(f"{name}: {word}")
    # An operator who runs this wants to know that Redis is away, though the service would go on.
    if not ready or checks["cache"] == "failed":
        raise OperatorError("The service cannot do all of its work.")


if __name__ == "__main__":
    sys.exit(main())
