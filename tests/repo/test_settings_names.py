"""docs/settings-names.md maps other projects' names to settings and variables that exist."""

from __future__ import annotations

import re

import pytest
import yaml

from app.settings import Settings
from tests.lab import ROOT
from tests.repo.test_specs import ROLES, spec

# The names in the tutorial that the service replaces.
TUTORIAL = {
    *("API_V1_STR", "APP_NAME", "BACKEND_CORS_ORIGINS", "DEBUG", "ENVIRONMENT", "SECRET_KEY", "SENTRY_DSN"),
    *("ACCESS_TOKEN_EXPIRE_MINUTES", "ALGORITHM", "DATABASE_URL", "DB_ECHO", "DB_MAX_OVERFLOW"),
    *("DB_POOL_RECYCLE", "DB_POOL_SIZE", "DB_POOL_TIMEOUT", "LOG_LEVEL", "REDIS_POOL_SIZE", "REDIS_URL"),
    *("POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_SERVER", "POSTGRES_USER", "REDIS_PASSWORD"),
    *("GRACEFUL_TIMEOUT", "KEEPALIVE", "MAX_REQUESTS", "MAX_REQUESTS_JITTER", "PRELOAD_APP", "TIMEOUT"),
    *("WORKERS", "WORKER_CLASS", "WORKER_CONNECTIONS", "WORKER_TMP_DIR"),
}
TABLE = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/settings-names.md").read_text().splitlines()
    if line.startswith("| `")
]


def test_the_table_has_every_name_of_the_tutorial_once() -> None:
    names = [name for row in TABLE for name in row[0]]
    assert len(names) == len(set(names))
    assert TUTORIAL - set(names) == set()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0][0])
def test_every_name_of_ours_exists(row: list[list[str]]) -> None:
    variables = {name for role in ROLES for name in spec(role)}
    role = yaml.safe_load((ROOT / "roles/app/vars/main.yml").read_text())
    variables |= {f"app_gunicorn.{name}" for name in role["__app_gunicorn_names"]}
    variables.add("services")
    settings = {name.upper() for name in Settings.model_fields}
    # Remarks may also quote values.
    quoted = [name for name in row[2] if re.match(r"(app|nginx|postgresql|secret|environment)_", name)]
    for name in (*row[1], *quoted):
        assert name in (settings if name.isupper() else variables), name


def test_secrets_are_called_secrets() -> None:
    text = (ROOT / "docs/settings-names.md").read_text()
    secrets = {row[1][0] for row in TABLE if f"| `{row[1][0] if row[1] else '-'}` | secret" in text}
    kinds = {
        name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in repr(field.annotation)
    }
    ours = {name for row in TABLE for name in row[1]}
    assert secrets == kinds & ours
