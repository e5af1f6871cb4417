"""Existing .env files, sorted into variables and the vault of an environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.parsing.vault import VaultLib, VaultSecret

from plugins.filter.env_file import import_report, import_secrets, import_text, sort_env
from tests.lab import Run, host_variables, play

PASSWORD = "password of the test"
FILE = """\
# comment
export PROJECT_NAME="Full Stack"
SECRET_KEY=changethis
POSTGRES_USER=app
DATABASE_URL=postgresql+asyncpg://${POSTGRES_USER}:hunter2@db:5432/app
SYNC_URL=postgresql+psycopg2://app:hunter2@db:5432/app
APP_DB_PASSWORD=hunter2
REDIS_PASSWORD=
REDIS_QUEUE_HOST=redis
CELERY_BROKER_URL=redis://redis:6379/1
SMTP_PASSWORD='p@ss {{ word }}'
SENTRY_DSN=
OBSCURE=a1b2c3d4e5f6a7b8c9d0
PROXY=http://me:hunter2@proxy:3128
PEM="-----BEGIN
x
-----END"
DEBUG=false
"""


def test_a_file_is_sorted() -> None:
    found = sort_env(FILE, "")
    assert found["environment"] == {
        "SECRET_KEY": "{{ service_key }}",
        "POSTGRES_USER": "{{ database.user }}",
        "DATABASE_URL": "{{ database.driver_url }}",
        "SYNC_URL": "{{ database.url | replace('postgresql:', 'postgresql+psycopg2:', 1) }}",
        "APP_DB_PASSWORD": "{{ database.password }}",
        "REDIS_PASSWORD": "{{ cache.password }}",
        "REDIS_QUEUE_HOST": "{{ queue.host }}",
        "CELERY_BROKER_URL": "{{ queue.url }}",
    }
    assert list(found["secrets"]) == ["SMTP_PASSWORD", "OBSCURE", "PROXY", "PEM"]
    assert found["settings"] == {"PROJECT_NAME": "Full Stack", "SENTRY_DSN": "", "DEBUG": "false"}
    assert found["driver"] == "postgresql+asyncpg"


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("SECRET_KEY", "8f4e1c0d2b7a", "secrets"),
        ("JWT_SECRET", "your-secret-here", "environment"),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", "30", "secrets"),
        ("KEYBOARD", "de", "settings"),
        ("EMAIL_FROM", "shop@example.com", "settings"),
        ("DB_POOL_SIZE", "5", "settings"),
        ("DB_ECHO", "false", "settings"),
        ("REDIS_CACHE_PORT", "6379", "environment"),
        ("MONGODB_URL", "mongodb://u:hunter2@m/app", "secrets"),
    ],
)
def test_a_value_is_a_secret_in_doubt(name: str, value: str, kind: str) -> None:
    found = sort_env(f"{name}={value}\n", "")
    assert [block for block in ("environment", "secrets", "settings") if found[block]] == [kind]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("A=1\nwhat is this\n", "line 2 is no assignment"),
        ("A-B=1\n", "A-B is no name of an environment variable"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(AnsibleFilterError, match=sentence):
        sort_env(text, "")


def test_a_second_import_adds_new_names_only() -> None:
    first = import_text("", "my-shop", sort_env("DEBUG=false\nA_TOKEN=1\n", ""))
    edited = first.replace('DEBUG: "false"', 'DEBUG: "true"  # For now')
    found = sort_env("DEBUG=false\nA_TOKEN=2\nB_TOKEN=3\nLOG_LEVEL=INFO\n", edited)
    assert found["known"] == ["DEBUG", "A_TOKEN"]
    text = import_text(edited, "my-shop", found)
    assert 'DEBUG: "true"  # For now' in text
    assert yaml.safe_load(text) == {
        "imported_my_shop_environment": {},
        "imported_my_shop_secrets": {
            "A_TOKEN": "{{ imported_my_shop_A_TOKEN }}",
            "B_TOKEN": "{{ imported_my_shop_B_TOKEN }}",
        },
        "imported_my_shop_settings": {"DEBUG": "true", "LOG_LEVEL": "INFO"},
    }
    vault = import_secrets('imported_my_shop_B_TOKEN: "kept"', "my-shop", found)
    assert yaml.safe_load(vault) == {"imported_my_shop_B_TOKEN": "kept"}
    with pytest.raises(AnsibleFilterError, match="imported_my_shop_settings has no lines of its own"):
        import_text("imported_my_shop_settings: {A: 1}\n", "my-shop", found)


def test_values_are_no_templates() -> None:
    vault = import_secrets("---", "shop", sort_env(FILE, ""))
    assert 'imported_shop_SMTP_PASSWORD: !unsafe "p@ss {{ word }}"' in vault


def test_the_report_names_no_values() -> None:
    report = " ".join(import_report(sort_env(FILE, ""), "shop", "inventories/x/group_vars/all"))
    assert "hunter2" not in report
    assert "database: true, cache: true, queue: true, database_driver: postgresql+asyncpg" in report
    assert 'secrets: "{{ imported_shop_secrets }}"' in report


def test_ansible_reads_what_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMETAL_VAULT_PASSWORD", PASSWORD)
    environment = tmp_path / "inventories/test"
    environment.mkdir(parents=True)
    (environment / "hosts.yml").write_text("all: {hosts: {web1: {}}}\n")
    (tmp_path / ".env").write_text(FILE)

    def run() -> Run:
        given = {"env": "test", "service": "shop", "file": str(tmp_path / ".env")}
        variables = json.dumps(given | {"__inventories": str(environment.parent)})
        return play("-i", environment, "playbooks/import_env.yml", "-e", variables)

    assert run().sentences == [
        "The environment test has no secrets yet: make them with `make secrets ENV=test`."
    ]
    vault = environment / "group_vars/all/vault.yml"
    vault.parent.mkdir(parents=True)
    secret = VaultSecret(PASSWORD.encode())
    vault.write_bytes(VaultLib([("default", secret)]).encrypt('secret_key: "kept"', secret))
    done = run()
    assert done.status == 0, done.output
    assert "hunter2" not in done.output
    found = host_variables(environment, "web1")
    assert found["imported_shop_SMTP_PASSWORD"] == "p@ss {{ word }}"
    assert found["imported_shop_settings"]["PROJECT_NAME"] == "Full Stack"
    assert found["secret_key"] == "kept"
    files = {path: path.read_bytes() for path in environment.rglob("*.yml")}
    assert b"hunter2" not in b"".join(files.values())
    assert run().changed == {"localhost": 0}
    assert {path: path.read_bytes() for path in environment.rglob("*.yml")} == files
