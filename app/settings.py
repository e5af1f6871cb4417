"""The service's settings, read from credentials, the environment and, in development, a file."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, FilePath, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url

# With this exit status of a worker, Gunicorn stops instead of restarting the worker forever.
EXIT_SETTINGS = 4
# Words in placeholders, and the beginnings of keys from popular tutorials.
WELL_KNOWN = re.compile(
    "changeme|secret|password|example|insecure|donotuse|01234567|abcdefgh|09d25e094faa|192b9bdd22ab"
)
WELL_KNOWN_PASSWORDS = re.compile("admin|api|changeme|example|password|postgres|redis|root|secret|test")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_SECRET = SecretStr("")

Seconds = Annotated[float, Field(gt=0, le=600)]
ShortSeconds = Annotated[float, Field(gt=0, le=60)]


class OperatorError(Exception):
    """An operator's command failed; the message gives the reason, `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class SettingsError(OperatorError):
    """The settings are invalid; the message names each one and the reason, without its value."""


class Settings(BaseSettings):
    """Every setting of the service; its environment variable is the field's name in capitals."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    environment: Literal["development", "testing", "staging", "production"] = Field(
        "production", description="How strictly settings are checked; strictest in staging and production."
    )
    debug: bool = Field(
        False, description="Enables the interactive API pages; refused in staging and production."
    )
    app_name: str = Field("Fastmetal API", min_length=1, description="Title of the OpenAPI document.")
    api_prefix: str = Field(
        "/api/v1",
        description="Path of the API's routes; the OpenAPI document is one level above. May be empty.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO",
        description="Lowest level logged; DEBUG also puts request ids into Postgres' application_name.",
    )
    release: str = Field(
        "development", description="Release id, shown in metrics and in Postgres' application_name."
    )

    database_url: str = Field(
        description="postgresql://USER@HOST[:PORT][,HOST…]/NAME or …/NAME?host=/run/postgresql[&port=PORT]"
    )
    database_password: SecretStr = Field(
        NO_SECRET, description="Password of the serving role, which is the user in DATABASE_URL."
    )
    database_other_password: SecretStr = Field(
        NO_SECRET,
        description="Second password of the serving role, tried if Postgres refuses DATABASE_PASSWORD; "
        "set during a rotation.",
    )
    database_ssl_ca: FilePath | None = Field(
        None, description="CA certificate to verify the server and its name."
    )
    database_owner: str = Field(
        "",
        description="Role that owns and migrates the schema; default: the serving role with _owner appended.",
    )
    database_owner_password: SecretStr = Field(
        NO_SECRET, description="Password of the owner role; only the manage command gets it."
    )
    database_pool_size: int = Field(8, ge=1, le=200, description="Connections that each worker keeps open.")
    database_max_overflow: int = Field(
        0, ge=0, le=200, description="Additional connections of a worker during bursts."
    )
    database_pool_timeout: ShortSeconds = Field(
        3, description="Seconds a request waits for a free connection."
    )
    database_pool_recycle: int = Field(
        1800, ge=1, description="Seconds after which a connection is replaced."
    )
    database_connect_timeout: ShortSeconds = Field(3, description="Timeout in seconds to open a connection.")
    database_statement_timeout: Seconds = Field(5, description="Timeout of a statement in seconds.")
    database_lock_timeout: Seconds = Field(2, description="Seconds a statement waits for a lock.")
    database_slow_statement: Seconds = Field(
        0.5, description="Seconds after which a statement is logged, including its wait for a connection."
    )
    database_idle_timeout: Seconds = Field(
        10, description="Seconds after which Postgres ends an idle transaction."
    )

    redis_url: str = Field(
        "", description="unix://, redis:// or rediss://HOST:PORT/DB; empty disables cache and locks."
    )
    redis_username: str | None = Field(None, description="Redis ACL username.")
    redis_password: SecretStr = Field(NO_SECRET, description="Password of the Redis ACL user.")
    redis_ssl_ca: FilePath | None = Field(None, description="CA certificate to verify a rediss:// server.")
    redis_key_prefix: str = Field("api:", description="Prefix of every key; the Redis ACL must allow it.")
    redis_max_connections: int = Field(8, ge=1, le=10_000, description="Most connections of each worker.")
    redis_timeout: float = Field(0.25, gt=0, le=10, description="Timeout of a Redis command in seconds.")
    redis_retry_after: float = Field(
        2, gt=0, le=300, description="Seconds between probes while the circuit breaker is open."
    )
    cache_ttl: int = Field(
        60, ge=1, le=86_400, description="Seconds until a cached value expires, plus or minus 10 %."
    )

    secret_key: SecretStr = Field(
        NO_SECRET, description="Key that signs tokens; at least 32 characters, 48 for HS384, 64 for HS512."
    )
    accepted_secret_keys: SecretStr = Field(
        NO_SECRET,
        description="Keys whose tokens are accepted besides SECRET_KEY's, separated by spaces or commas; "
        "during a rotation also the next key.",
    )
    token_algorithm: Literal["HS256", "HS384", "HS512"] = Field(
        "HS256", description="Signature algorithm of tokens."
    )
    token_lifetime_seconds: int = Field(
        3600, ge=1, le=31_536_000, description="Default lifetime of a token in seconds."
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins that browsers may call from, as a comma-separated or JSON list; * for all."
    )
    cors_allow_credentials: bool = Field(
        False, description="Whether browsers may send credentials across origins."
    )
    max_body_bytes: int = Field(
        2_097_152,
        ge=0,
        description="Largest accepted request body in bytes; enough for 5,000 bulk items in ASCII.",
    )
    request_timeout: Seconds = Field(
        15,
        description="Timeout of a request in seconds; keep it below Gunicorn's graceful_timeout.",
    )
    shutdown_file: Path | None = Field(
        None,
        description="While this file exists, readiness is 503 and every response has Connection: close.",
    )
    external_endpoints: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="HOST:PORT of other dependencies, as a comma-separated or JSON list; checked by "
        "/health/detail.",
    )
    sentry_dsn: SecretStr = Field(
        NO_SECRET, description="Sentry DSN to report errors to; empty disables reporting."
    )

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, _: type[BaseSettings], **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Give credentials precedence, so that an environment variable cannot replace a secret."""
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
                raise ValueError("is neither a comma-separated list nor a JSON list") from None
        return [item.strip() for item in value.split(",") if item.strip()]

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}"):
                raise ValueError("must list origins without a path, such as https://shop.example")
        return value

    @field_validator("external_endpoints", mode="after")
    @classmethod
    def _check_endpoints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not re.fullmatch(r"[\w.-]+:[0-9]{1,5}", endpoint) for endpoint in value):
            raise ValueError("must list endpoints such as mail.example:587")
        return value

    @field_validator("api_prefix", mode="after")
    @classmethod
    def _check_prefix(cls, value: str) -> str:
        if not re.fullmatch(r"(/[A-Za-z0-9_-]+)*", value):
            raise ValueError("must be a path such as /api/v1, without a slash at its end")
        if re.match(r"/(health|metrics)(/|\Z)", value):
            raise ValueError("must not be below /health or /metrics, which are not public")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _use_async_driver(cls, value: str) -> str:
        """Convert a libpq URL to SQLAlchemy's form for asyncpg."""
        parts = re.fullmatch(r"(?:postgres|postgresql|postgresql\+asyncpg)://([^/]*@)?([^/]*)(.*)", value)
        if parts is None:
            raise ValueError("must start with postgresql://")
        user, hosts, rest = parts.groups("")
        several = hosts.split(",") if "," in hosts else []
        url = make_url(f"postgresql+asyncpg://{user}{'' if several else hosts}{rest}")
        # SQLAlchemy expects several endpoints as repeated query parameters, each with its port.
        endpoints = [host if host.rpartition(":")[2].isdigit() else f"{host}:5432" for host in several]
        url = url.update_query_pairs(("host", unquote(endpoint)) for endpoint in endpoints)
        if not url.username or not url.database:
            raise ValueError("must name a user and a database")
        if url.password or "password" in url.query:
            raise ValueError("must not contain a password: use DATABASE_PASSWORD")
        if others := url.query.keys() - {"host", "port"}:
            raise ValueError(f"must not contain {min(others)}: only the parameters host and port are allowed")
        if not re.fullmatch(r"\d{1,5}", str(url.query.get("port", "0"))):
            raise ValueError("must have one number as the parameter port")
        return url.render_as_string()

    @field_validator("redis_url", mode="after")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and parts.scheme not in ("unix", "redis", "rediss"):
            raise ValueError("must start with unix://, redis:// or rediss://")
        if parts.username or parts.password or "password" in parts.query:
            raise ValueError("must not contain credentials: use REDIS_USERNAME and REDIS_PASSWORD")
        # Other parameters could override the host, certificate verification and timeouts.
        if others := parse_qs(parts.query, keep_blank_values=True).keys() - {"db"}:
            raise ValueError(f"must not contain {min(others)}: only the parameter db is allowed")
        return value

    @field_validator("sentry_dsn", mode="after")
    @classmethod
    def _check_dsn(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value():
            return value
        from sentry_sdk.utils import BadDsn, Dsn  # slow to import, and few environments have a DSN

        try:
            Dsn(value.get_secret_value())
        except BadDsn:
            raise ValueError("must be a DSN such as https://KEY@sentry.example/1") from None
        return value

    @model_validator(mode="after")
    def _refuse_unsafe_values(self) -> Self:
        if self.environment in ("staging", "production"):
            if not self.secret_key.get_secret_value():
                raise ValueError("SECRET_KEY is required: generate one with `openssl rand -base64 48`")
            for number, key in enumerate(self.verification_keys):
                minimum = int(self.token_algorithm[2:]) // 8
                _refuse_weak_key("ACCEPTED_SECRET_KEYS" if number else "SECRET_KEY", key, minimum)
            if self.debug:
                raise ValueError("DEBUG must be off in staging and production")
            passwords = ("database_password", "database_other_password", "database_owner_password")
            for name in (*passwords, "redis_password"):
                if WELL_KNOWN_PASSWORDS.fullmatch(getattr(self, name).get_secret_value().lower()):
                    raise ValueError(f"{name.upper()} is a well-known password: generate a random one")
            if not self.database_ssl_ca and not all(_is_local(host) for host, _ in self.database_endpoints):
                raise ValueError("DATABASE_SSL_CA is required if the database is on another host")
            redis = urlsplit(self.redis_url)
            if redis.scheme == "redis" and not _is_local(redis.hostname or "localhost"):
                raise ValueError("REDIS_URL must start with rediss:// if Redis is on another host")
        if "*" in self.cors_origins and self.cors_allow_credentials:
            raise ValueError("CORS_ORIGINS must not be * if CORS_ALLOW_CREDENTIALS is on: list the origins")
        return self

    @property
    def verification_keys(self) -> list[str]:
        """Every key whose tokens are accepted, SECRET_KEY first."""
        accepted = self.accepted_secret_keys.get_secret_value().replace(",", " ").split()
        return [key for key in (self.secret_key.get_secret_value(), *accepted) if key]

    def secrets(self) -> list[str]:
        """Return every secret value, which logs and error reports hide."""
        values = [value.get_secret_value() for _, value in self if isinstance(value, SecretStr)]
        return values + self.verification_keys

    @property
    def database_endpoints(self) -> list[tuple[str, int]]:
        """The database's endpoints: host, or directory of the unix socket, and port."""
        url = make_url(self.database_url)
        port = int(str(url.query.get("port", url.port or 5432)))
        if "host" not in url.query:
            return [(url.host or "/run/postgresql", port)]
        # Without brackets, the last group of an IPv6 address is not a port.
        endpoints = [
            re.fullmatch(r"(\[.*\]|[^:]*):(\d+)", endpoint) or (endpoint, endpoint, port)
            for endpoint in url.normalized_query["host"]
        ]
        return [(endpoint[1].strip("[]"), int(endpoint[2])) for endpoint in endpoints]

    @property
    def owner(self) -> str:
        """The Postgres role that owns and migrates the schema."""
        return self.database_owner or f"{make_url(self.database_url).username}_owner"


def _refuse_weak_key(name: str, key: str, minimum: int) -> None:
    if len(key) < minimum:
        raise ValueError(f"{name} is too short: use at least {minimum} characters")
    letters = "".join(character for character in key.lower() if character.isalnum())
    if len(set(key)) < 10 or WELL_KNOWN.search(letters):
        raise ValueError(f"{name} is a well-known or guessable value: generate a random one")


def _is_local(host: str) -> bool:
    """Return whether an endpoint is on this host."""
    return host in LOOPBACK or host.startswith("/")


def load_settings(**overrides: Any) -> Settings:
    """Return the settings of this process, or raise SettingsError with one sentence per error."""
    environment = os.environ.get("ENVIRONMENT", "")
    env_file = f".env.{environment}" if environment in ("development", "testing") else None
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    try:
        return Settings(_env_file=env_file, _secrets_dir=credentials, **overrides)
    except ValidationError as error:
        sentences = " ".join(_sentence(dict(item)) for item in error.errors())
        raise SettingsError(sentences, EXIT_SETTINGS) from None


def _sentence(error: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in error["loc"]).upper()
    if error["type"] == "missing":
        return f"{name} is required."
    if error["type"] == "extra_forbidden":
        return f"{name} is not a setting of this service."
    message = str(error["msg"])
    if error["type"] == "value_error":  # from a validator above; it continues the setting's name, if any
        return f"{name} {message.removeprefix('Value error, ')}.".lstrip()
    return f"{name}: {message}."
