"""Settings are typed, come from three sources, and refuse unsafe values."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import make_url

from app.db import create_engine
from app.main import create_app
from app.settings import Settings, SettingsError, load_settings

SECRET = "Zk3vQ9xN7mB2wL5tR8yU1cP4aH6jD0fGsTeXoV"


@pytest.fixture(autouse=True)
def _minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("DATABASE_URL", "postgresql://api@/api?host=/run/postgresql")
    monkeypatch.setenv("SECRET_KEY", SECRET)


def test_the_default_environment_is_production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENVIRONMENT")
    monkeypatch.delenv("SECRET_KEY")
    with pytest.raises(SettingsError, match="SECRET_KEY is required"):
        load_settings()


@pytest.mark.parametrize(
    ("given_url", "driver_url"),
    [
        ("postgres://api@db/api", "postgresql+asyncpg://api@db/api"),
        ("postgresql://api@db:5433/api", "postgresql+asyncpg://api@db:5433/api"),
        ("postgresql+asyncpg://api@[::1]/api", "postgresql+asyncpg://api@[::1]/api"),
        (
            "postgresql://api@/api?host=/run/postgresql",
            "postgresql+asyncpg://api@/api?host=%2Frun%2Fpostgresql",
        ),
        (
            "postgresql://api@10.0.0.1:5432,10.0.0.2/api",
            "postgresql+asyncpg://api@/api?host=10.0.0.1%3A5432&host=10.0.0.2%3A5432",
        ),
    ],
)
def test_a_database_url_is_converted_to_the_async_driver(
    monkeypatch: pytest.MonkeyPatch, given_url: str, driver_url: str
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "testing")
    monkeypatch.setenv("DATABASE_URL", given_url)
    assert make_url(load_settings().database_url) == make_url(driver_url)


@pytest.mark.parametrize(
    ("address", "endpoints"),
    [
        ("db/api", [("db", 5432)]),
        ("[fd00::10:5]:5433/api", [("fd00::10:5", 5433)]),
        ("[fd00::a:1]/api", [("fd00::a:1", 5432)]),
        ("/api?host=/run/postgresql", [("/run/postgresql", 5432)]),
        ("/api?host=/run/postgresql&port=5433", [("/run/postgresql", 5433)]),
        ("/api?host=fd00::a:1&host=db:5433", [("fd00::a:1", 5432), ("db", 5433)]),
        (
            "[fd00::a:1]:5433,[fd00::a:2],10.0.0.1/api",
            [("fd00::a:1", 5433), ("fd00::a:2", 5432), ("10.0.0.1", 5432)],
        ),
    ],
)
def test_endpoints_are_hosts_and_ports(
    monkeypatch: pytest.MonkeyPatch, address: str, endpoints: list[tuple[str, int]]
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "testing")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://api@{address}")
    assert load_settings().database_endpoints == endpoints


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("SECRET_KEY", "", "SECRET_KEY is required"),
        ("SECRET_KEY", "short", "SECRET_KEY is too short"),
        ("SECRET_KEY", "change-me-change-me-change-me-change-me", "SECRET_KEY is a well-known"),
        ("SECRET_KEY", "your-secret-key-that-nobody-may-know-9x", "SECRET_KEY is a well-known"),
        ("SECRET_KEY", "a" * 64, "SECRET_KEY is a well-known"),
        # Keys from the documentation of FastAPI, Flask, jwt.io and Supabase.
        ("SECRET_KEY", "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7", "is a well-known"),
        ("SECRET_KEY", "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf", "is a well-known"),
        ("SECRET_KEY", "a-string-secret-at-least-256-bits-long", "SECRET_KEY is a well-known"),
        ("SECRET_KEY", "super-secret-jwt-token-with-at-least-32-characters-long", "is a well-known"),
        ("TOKEN_ALGORITHM", "HS384", "SECRET_KEY is too short: use at least 48 characters"),
        ("ACCEPTED_SECRET_KEYS", f"{SECRET} short", "ACCEPTED_SECRET_KEYS is too short"),
        ("ACCEPTED_SECRET_KEYS", f"{SECRET},{'a' * 40}", "ACCEPTED_SECRET_KEYS is a well-known"),
        ("DATABASE_PASSWORD", "Postgres", "DATABASE_PASSWORD is a well-known password"),
        ("DATABASE_OTHER_PASSWORD", "api", "DATABASE_OTHER_PASSWORD is a well-known password"),
        ("REDIS_PASSWORD", "secret", "REDIS_PASSWORD is a well-known password"),
        ("DEBUG", "true", "DEBUG must be off"),
        ("DATABASE_URL", "postgresql://api@db/api", "DATABASE_SSL_CA is required"),
        ("DATABASE_URL", "postgresql://api@127.0.0.1:5432,10.0.0.2/api", "DATABASE_SSL_CA is required"),
        ("DATABASE_URL", "postgresql://api@/api?host=db", "DATABASE_SSL_CA is required"),
        ("DATABASE_URL", "mysql://api@db/api", "DATABASE_URL must start with postgresql://"),
        ("DATABASE_URL", "nonsense", "DATABASE_URL must start with postgresql://"),
        ("DATABASE_URL", "postgresql://db/api", "DATABASE_URL must name a user"),
        ("DATABASE_URL", "postgresql://api:hunter2@db/api", "DATABASE_URL must not contain a password"),
        (
            "DATABASE_URL",
            "postgresql://api@/api?password=hunter2",
            "DATABASE_URL must not contain a password",
        ),
        ("SENTRY_DSN", "nonsense", "SENTRY_DSN must be a DSN such as https://KEY@sentry.example/1."),
        ("DATABASE_URL", "postgresql://api@/api?sslmode=off", "DATABASE_URL must not contain sslmode"),
        (
            "DATABASE_URL",
            "postgresql://api@/api?port=x",
            "DATABASE_URL must have one number as the parameter port",
        ),
        ("DATABASE_SSL_CA", "/nowhere/ca.crt", "DATABASE_SSL_CA: Path does not point to a file"),
        ("DATABASE_POOL_SIZE", "many", "DATABASE_POOL_SIZE: Input should be a valid integer"),
        ("DATABASE_POOL_SIZE", "0", "DATABASE_POOL_SIZE: Input should be greater than"),
        ("REDIS_URL", "http://cache", "REDIS_URL must start with unix://"),
        ("REDIS_URL", "redis://cache:6379/0", "REDIS_URL must start with rediss://"),
        ("REDIS_URL", "rediss://:hunter2@cache/0", "REDIS_URL must not contain credentials"),
        ("REDIS_URL", "unix:///run/r.sock?password=hunter2", "REDIS_URL must not contain credentials"),
        ("REDIS_URL", "rediss://cache/0?ssl_cert_reqs=none", "REDIS_URL must not contain ssl_cert_reqs"),
        ("REDIS_URL", "redis:///0?host=10.0.0.5", "REDIS_URL must not contain host"),
        ("REDIS_URL", "unix:///run/r.sock?db=0&socket_timeout=", "REDIS_URL must not contain socket_timeout"),
        ("EXTERNAL_ENDPOINTS", "mail.example", "EXTERNAL_ENDPOINTS must list endpoints"),
        ("EXTERNAL_ENDPOINTS", "mail.example:٥٨٧", "EXTERNAL_ENDPOINTS must list endpoints"),
        ("APP_NAME", "", "APP_NAME: String should have at least 1 character"),
        ("API_PREFIX", "api/v1", "API_PREFIX must be a path such as /api/v1"),
        ("API_PREFIX", "/api/v1/", "API_PREFIX must be a path such as /api/v1"),
        ("API_PREFIX", "/api/v1\n", "API_PREFIX must be a path such as /api/v1"),
        ("API_PREFIX", "/api/{version}", "API_PREFIX must be a path such as /api/v1"),
        ("API_PREFIX", "/health", "API_PREFIX must not be below /health or /metrics"),
        ("API_PREFIX", "/metrics/v1", "API_PREFIX must not be below /health or /metrics"),
        ("ENVIRONMENT", "live", "ENVIRONMENT: Input should be 'development'"),
        ("TOKEN_ALGORITHM", "none", "TOKEN_ALGORITHM: Input should be 'HS256'"),
        ("CORS_ORIGINS", "shop.example", "CORS_ORIGINS must list origins"),
        ("CORS_ORIGINS", "https://shop.example/", "CORS_ORIGINS must list origins"),
        ("REQUEST_TIMEOUT", "0", "REQUEST_TIMEOUT: Input should be greater than 0"),
        ("CORS_ORIGINS", "[1,", "CORS_ORIGINS is neither a comma-separated list nor a JSON list"),
    ],
)
def test_an_unsafe_or_invalid_value_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_wildcard_origin_with_credentials_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "*")
    load_settings()
    monkeypatch.setenv("CORS_ALLOW_CREDENTIALS", "true")
    with pytest.raises(SettingsError, match="CORS_ORIGINS must not be"):
        load_settings()


def test_a_missing_database_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(SettingsError, match=r"^DATABASE_URL is required\.$"):
        load_settings()


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.from_regex(r"https://[a-z]{1,10}\.example(:[0-9]{2,4})?", fullmatch=True), max_size=5))
def test_origins_may_be_a_comma_separated_or_json_list(origins: list[str]) -> None:
    import json

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORS_ORIGINS", " , ".join(origins))
        assert load_settings().cors_origins == tuple(origins)
        patch.setenv("CORS_ORIGINS", json.dumps(origins))
        assert load_settings().cors_origins == tuple(origins)
    assert load_settings(cors_origins=origins).cors_origins == tuple(origins)


def test_credentials_take_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret_key").write_text(f"{SECRET}-from-file\n")
    (tmp_path / "database_password").write_text("p w\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = load_settings()
    assert settings.secret_key.get_secret_value() == f"{SECRET}-from-file"
    assert settings.database_password is not None
    assert settings.database_password.get_secret_value() == "p w"
    assert SECRET not in repr(settings)


def test_an_env_file_is_for_development_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("development", "production"):
        (tmp_path / f".env.{name}").write_text("LOG_LEVEL=DEBUG\nDATABASE_OWNER=boss\n")
    assert load_settings().log_level == "INFO"
    assert load_settings().owner == "api_owner"
    monkeypatch.setenv("ENVIRONMENT", "development")
    monkeypatch.delenv("SECRET_KEY")
    assert load_settings().log_level == "DEBUG"
    assert load_settings().owner == "boss"
    (tmp_path / ".env.development").write_text("LOG_LEVLE=DEBUG\n")
    with pytest.raises(SettingsError, match="LOG_LEVLE is not a setting"):
        load_settings()


@pytest.mark.parametrize(
    ("url", "endpoints"),
    [
        ("postgresql://api@127.0.0.1/api", [("127.0.0.1", 5432)]),
        ("postgresql://api@[::1]:5433/api", [("::1", 5433)]),
        ("postgresql://api@localhost,[::1]/api", [("localhost", 5432), ("::1", 5432)]),
        ("postgresql://api@[::1]:1,127.0.0.1:2/api", [("::1", 1), ("127.0.0.1", 2)]),
        ("postgresql://api@/api", [("/run/postgresql", 5432)]),
        ("postgresql://api@/api?host=/srv/pg", [("/srv/pg", 5432)]),
    ],
)
async def test_a_database_on_this_host_needs_no_ca(
    monkeypatch: pytest.MonkeyPatch, url: str, endpoints: list[tuple[str, int]]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    settings = load_settings()
    assert settings.database_endpoints == endpoints
    await create_engine(settings).dispose()


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_factory_prints_one_line_for_invalid_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET_KEY", "short")
    with pytest.raises(SystemExit) as caught:
        create_app()
    assert caught.value.code == 4
    assert capsys.readouterr().err.count("\n") == 1
