"""The operator's command: `python -m app.manage migrate | current | token | check`."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence

from sqlalchemy import exc

from app.auth import WRITE_PRODUCTS, Tokens
from app.cache import Cache
from app.db import Database
from app.health import Health
from app.logging import configure_logging
from app.metrics import Metrics
from app.migrations import head_revision, known_revisions
from app.migrations.run import MigrationError, current_revision, migrate
from app.settings import EXIT_SETTINGS, Settings, SettingsError, load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; results go to standard output, everything else to standard error."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings()
    except SettingsError as error:
        return _fail(str(error), EXIT_SETTINGS)
    configure_logging(settings.log_level)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # app.migrations says what happened
    try:
        if options.command == "token":
            return _token(settings, options)
        if options.command == "migrate":
            return asyncio.run(_migrate(settings, options))
        if options.command == "current":
            return asyncio.run(_current(settings))
        return asyncio.run(_check(settings))
    except MigrationError as error:
        return _fail(str(error))
    except (OSError, TimeoutError, exc.DBAPIError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()
        return _fail(f"The database refused: {reason[-1] if reason else type(error).__name__}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="app.manage", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("migrate", help="bring the database's schema to this release's")
    step.add_argument("--to", default="head", metavar="REVISION", help="another revision, or base")
    step.add_argument("--lock-timeout", type=float, default=5, metavar="SECONDS")
    commands.add_parser("current", help="show the database's revision and this release's")
    token = commands.add_parser("token", help="print a bearer token, and nothing else")
    token.add_argument("--subject", required=True, metavar="NAME")
    token.add_argument("--scope", action="append", metavar="SCOPE", help=f"default: {WRITE_PRODUCTS}")
    token.add_argument("--lifetime", type=int, metavar="SECONDS")
    commands.add_parser(
        "check", help="settings, database, schema and cache; status 0 if the service can serve"
    )
    return parser


def _token(settings: Settings, options: argparse.Namespace) -> int:
    if not settings.secret_key.get_secret_value():
        return _fail("SECRET_KEY is required to sign a token.", EXIT_SETTINGS)
    if options.lifetime is not None and options.lifetime < 1:
        return _fail("The lifetime must be at least one second.", 2)
    scopes = frozenset(options.scope or [WRITE_PRODUCTS])
    _print(Tokens(settings).issue(options.subject, scopes, options.lifetime))
    return 0


async def _migrate(settings: Settings, options: argparse.Namespace) -> int:
    await migrate(settings, options.to, options.lock_timeout)
    return await _current(settings)


async def _current(settings: Settings) -> int:
    revision = await current_revision(settings)
    _print(f"database {revision or 'base'}, release {head_revision()}")
    return 0


async def _check(settings: Settings) -> int:
    metrics = Metrics(settings.release)
    database, cache = Database(settings, metrics), Cache(settings, metrics)
    try:
        ready, checks = await Health(database, cache, known_revisions()).report()
    finally:
        await cache.close()
        await database.close()
    for name, word in checks.items():
        _print(f"{name}: {word}")
    # An operator who runs this wants to know that Redis is away, though the service would go on.
    return 0 if ready and checks["cache"] != "failed" else 1


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _fail(message: str, status: int = 1) -> int:
    sys.stderr.write(f"{message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
