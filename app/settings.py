"""One typed settings object, from credentials, environment and, in development, a file."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, FilePath, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url

# Gunicorn stops, instead of restarting the worker for ever, when a worker leaves with this status.
EXIT_SETTINGS = 4
# Words of placeholders, and how the keys of well-read tutorials begin.
WELL_KNOWN = re.compile(
    "changeme|secret|password|example|insecure|donotuse|01234567|abcdefgh|09d25e094faa|192b9bdd22ab"
)
WELL_KNOWN_PASSWORDS = re.compile("admin|api|changeme|example|password|postgres|redis|root|secret|test")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_SECRET = SecretStr("")

Seconds = Annotated[float, Field(gt=0, le=600)]
ShortSeconds = Annotated[float, Field(gt=0, le=60)]


class OperatorError(Exception):
    """What an operator asked for cannot be done; the message says why, and the status is the process's."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class SettingsError(OperatorError):
    """The settings are wrong; the message says which and why, without any value."""


class Settings(BaseSettings):
    """Every setting of the service; the environment name is the field's name in capitals."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    environment: Literal["development", "testing", "staging", "production"] = Field(
        "production", description="Decides how strict the checks are."
    )
    debug: bool = Field(False, description="Interactive API pages; refused in staging and production.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level logged; DEBUG also names requests in Postgres' application_name."
    )
    release: str = Field("development", description="Release identifier, shown in metrics and to Postgres.")

    database_url: str = Field(
        description="postgresql://USER@HOST[:PORT][,HOST…]/NAME or …/NAME?host=/run/postgresql"
    )
    database_password: SecretStr = Field(NO_SECRET, description="Password of the serving role.")
    database_ssl_ca: FilePath | None = Field(None, description="CA to verify the server and its name by.")
    database_owner: str = Field("", description="Role that migrates; default: the serving role with _owner.")
    database_owner_password: SecretStr = Field(NO_SECRET, description="Given to the manage command only.")
    database_pool_size: int = Field(8, ge=1, le=200, description="Connections each worker keeps.")
    database_max_overflow: int = Field(0, ge=0, le=200, description="Connections more in a burst.")
    database_pool_timeout: ShortSeconds = Field(3, description="Seconds to wait for a free connection.")
    database_pool_recycle: int = Field(1800, ge=1, description="Seconds a connection is kept.")
    database_connect_timeout: ShortSeconds = Field(3, description="Seconds to open a connection.")
    database_statement_timeout: Seconds = Field(5, description="Seconds a statement may run.")
    database_lock_timeout: Seconds = Field(2, description="Seconds a statement may wait for a lock.")
    database_slow_statement: Seconds = Field(
        0.5, description="Seconds from which a statement, with its wait for a connection, is logged."
    )
    database_idle_timeout: Seconds = Field(10, description="Seconds a transaction may sit idle.")

    redis_url: str = Field("", description="unix://, redis:// or rediss://HOST:PORT/DB; empty: no cache.")
    redis_username: str | None = Field(None, description="Redis ACL user.")
    redis_password: SecretStr = Field(NO_SECRET, description="Password of the Redis ACL user.")
    redis_ssl_ca: FilePath | None = Field(None, description="CA to verify a rediss:// server by.")
    redis_key_prefix: str = Field("api:", description="Start of every key, as the ACL allows it.")
    redis_max_connections: int = Field(64, ge=1, le=10_000, description="Connections each worker may open.")
    redis_timeout: float = Field(0.25, gt=0, le=10, description="Seconds a Redis answer may take.")
    redis_retry_after: float = Field(2, gt=0, le=300, description="Seconds between pings after a failure.")
    cache_ttl: int = Field(60, ge=1, le=86_400, description="Seconds a cached read lives, within a tenth.")

    secret_key: SecretStr = Field(
        NO_SECRET, description="Signs tokens; at least 32 characters, 48 for HS384, 64 for HS512."
    )
    secret_keys_old: SecretStr = Field(
        NO_SECRET, description="More keys whose tokens are accepted, separated by spaces or commas."
    )
    token_algorithm: Literal["HS256", "HS384", "HS512"] = Field("HS256", description="Signature of tokens.")
    token_lifetime_seconds: int = Field(3600, ge=1, le=31_536_000, description="Default lifetime of a token.")

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field((), description="A comma list or JSON.")
    cors_allow_credentials: bool = Field(False, description="Whether browsers may send credentials.")
    max_body_bytes: int = Field(1_048_576, ge=0, description="Largest request body accepted.")
    request_timeout: Seconds = Field(
        15,
        description="Seconds a request may take; less than Gunicorn's graceful_timeout, or a stop cuts it.",
    )
    drain_file: Path | None = Field(
        None,
        description="While this file exists readiness answers 503 and every answer says Connection: close.",
    )
    external_endpoints: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="HOST:PORT of what else is used, a comma list; operators are told whether it answers.",
    )
    sentry_dsn: SecretStr = Field(NO_SECRET, description="Where errors are reported; empty: nowhere.")

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, _: type[BaseSettings], **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Credentials win over the environment, so that a stray variable cannot replace a secret."""
        names = ("init_settings", "file_secret_settings", "env_settings", "dotenv_settings")
        return tuple(sources[name] for name in names)

    @field_validator("cors_origins", "external_endpoints", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError("is neither a comma list nor a JSON list") from None
        return [item.strip() for item in value.split(",") if item.strip()]

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}"):
                raise ValueError("must name origins, as in https://shop.example, without a path")
        return value

    @field_validator("external_endpoints", mode="after")
    @classmethod
    def _check_endpoints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not re.fullmatch(r"[\w.-]+:\d{1,5}", place) for place in value):
            raise ValueError("must name endpoints, as in mail.example:587")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _use_async_driver(cls, value: str) -> str:
        """Accept what libpq accepts and return it for SQLAlchemy's asyncpg driver."""
        parts = re.fullmatch(r"(?:postgres|postgresql|postgresql\+asyncpg)://([^/]*@)?([^/]*)(.*)", value)
        if parts is None:
            raise ValueError("must start with postgresql://")
        user, hosts, rest = parts.groups("")
        several = hosts.split(",") if "," in hosts else []
        url = make_url(f"postgresql+asyncpg://{user}{'' if several else hosts}{rest}")
        # SQLAlchemy wants several endpoints as repeated query values, each with its port.
        places = [host if host.rpartition(":")[2].isdigit() else f"{host}:5432" for host in several]
        url = url.update_query_pairs(("host", unquote(place)) for place in places)
        if not url.username or not url.database:
            raise ValueError("must name a user and a database")
        if url.password or "password" in url.query:
            raise ValueError("must not carry a password: use DATABASE_PASSWORD")
        if others := url.query.keys() - {"host"}:
            raise ValueError(f"must not carry {min(others)}: all but host are settings of their own")
        return url.render_as_string()

    @field_validator("redis_url", mode="after")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and parts.scheme not in ("unix", "redis", "rediss"):
            raise ValueError("must start with unix://, redis:// or rediss://")
        if parts.username or parts.password or "password" in parts.query:
            raise ValueError("must not carry an account: use REDIS_USERNAME and REDIS_PASSWORD")
        # The client would let them replace the host, the check of its certificate and every timeout.
        if others := parse_qs(parts.query, keep_blank_values=True).keys() - {"db"}:
            raise ValueError(f"must not carry {min(others)}: all but db are settings of their own")
        return value

    @model_validator(mode="after")
    def _refuse_unsafe_values(self) -> Self:
        if self.environment in ("staging", "production"):
            if not self.secret_key.get_secret_value():
                raise ValueError("SECRET_KEY is required: generate one with `openssl rand -base64 48`")
            for number, key in enumerate(self.signing_keys):
                least = int(self.token_algorithm[2:]) // 8
                _refuse_weak_key("SECRET_KEYS_OLD" if number else "SECRET_KEY", key, least)
            if self.debug:
                raise ValueError("DEBUG must be off in staging and production")
            for name in ("database_password", "database_owner_password", "redis_password"):
                if WELL_KNOWN_PASSWORDS.fullmatch(getattr(self, name).get_secret_value().lower()):
                    raise ValueError(f"{name.upper()} is a well-known password: generate a random one")
            if not self.database_ssl_ca and not all(_is_local(host) for host, _ in self.database_endpoints):
                raise ValueError("DATABASE_SSL_CA is required where the database is on another host")
            redis = urlsplit(self.redis_url)
            if redis.scheme == "redis" and not _is_local(redis.hostname or "localhost"):
                raise ValueError("REDIS_URL must start with rediss:// where Redis is on another host")
        if "*" in self.cors_origins and self.cors_allow_credentials:
            raise ValueError("CORS_ORIGINS must not be * while CORS_ALLOW_CREDENTIALS is on: name them")
        return self

    @property
    def signing_keys(self) -> list[str]:
        """Every key whose tokens are accepted; the first one signs."""
        old = self.secret_keys_old.get_secret_value().replace(",", " ").split()
        return [key for key in (self.secret_key.get_secret_value(), *old) if key]

    def secrets(self) -> list[str]:
        """Return every secret value, so that they can be kept out of what is sent elsewhere."""
        values = [value.get_secret_value() for _, value in self if isinstance(value, SecretStr)]
        return values + self.signing_keys

    @property
    def database_endpoints(self) -> list[tuple[str, int]]:
        """Return where the database may be: a host, or the directory of its socket, and the port."""
        url = make_url(self.database_url)
        port = url.port or 5432
        if "host" not in url.query:
            return [(url.host or "/run/postgresql", port)]
        # Without brackets, the last part of an IPv6 address is no port.
        places = [
            re.fullmatch(r"(\[.*\]|[^:]*):(\d+)", place) or (place, place, port)
            for place in url.normalized_query["host"]
        ]
        return [(place[1].strip("[]"), int(place[2])) for place in places]

    @property
    def owner(self) -> str:
        """The Postgres role that owns and migrates the schema."""
        return self.database_owner or f"{make_url(self.database_url).username}_owner"


def _refuse_weak_key(name: str, key: str, least: int) -> None:
    if len(key) < least:
        raise ValueError(f"{name} is too short: use at least {least} characters")
    letters = "".join(character for character in key.lower() if character.isalnum())
    if len(set(key)) < 10 or WELL_KNOWN.search(letters):
        raise ValueError(f"{name} is a well-known or guessable value: generate a random one")


def _is_local(host: str) -> bool:
    """Whether an endpoint is this host itself."""
    return host in LOOPBACK or host.startswith("/")


def load_settings(**overrides: Any) -> Settings:
    """Read the settings of this process or raise SettingsError with one sentence for each fault."""
    environment = os.environ.get("ENVIRONMENT", "")
    env_file = f".env.{environment}" if environment in ("development", "testing") else None
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    try:
        return Settings(_env_file=env_file, _secrets_dir=credentials, **overrides)
    except ValidationError as error:
        sentences = " ".join(_sentence(dict(fault)) for fault in error.errors())
        raise SettingsError(sentences, EXIT_SETTINGS) from None


def _sentence(fault: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"]).upper()
    if fault["type"] == "missing":
        return f"{name} is required."
    if fault["type"] == "extra_forbidden":
        return f"{name} is not a setting of this service."
    message = str(fault["msg"])
    if fault["type"] == "value_error":  # one of ours, which goes on from the name, if there is one
        return f"{name} {message.removeprefix('Value error, ')}.".lstrip()
    return f"{name}: {message}."
