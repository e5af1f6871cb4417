"""The sentences with which the role app refuses variables, its jobs and its units."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.lab import ROOT
from tests.roles import Role

FACTS = {"python_version": "3.13.5", "processor_vcpus": 2, "architecture": "x86_64"}
SOUND = {
    "ansible_facts": FACTS,
    "role_path": str(ROOT / "roles/app"),
    "inventory_hostname": "web1",
    "app_base_settings": {"DATABASE_URL": "postgresql://api@/api?host=/run/postgresql"},
    "app_secrets_as": "files",
    "app_base_secrets": {"secret_key": hashlib.sha256(b"key").hexdigest()},
}
PURGE = {"purge": {"command": "python -m app.manage purge", "schedule": "daily"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"app_name": "Api"}, "app_name 'Api' is not a service name"),
    ({"app_workers": 257}, "app_workers is 257: set 1 to 256"),
    ({"app_backlog": 100}, "app_backlog is 100: set 128 to 65535."),
    ({"app_promote_timeout_seconds": 5}, "app_promote_timeout_seconds is 5: set 10 to 86400."),
    ({"app_shutdown_grace_seconds": 301}, "app_shutdown_grace_seconds is 301: set 0 to 300."),
    ({"app_drain": True}, "app_drain needs two app hosts behind an edge on another host"),
    ({"app_keep_releases": 1}, "app_keep_releases is 1: set 2 to 1000"),
    ({"app_start_timeout": 4}, "app_start_timeout is 4: set 5 to 3600 seconds."),
    ({"app_health_path": "ready"}, "app_health_path 'ready' is not a path: start it with a slash."),
    ({"app_factory": "app.main"}, "app_factory 'app.main' is not a factory"),
    ({"app_migrate_command": "sh -c 'a"}, "app_migrate_back_command is no command: close its"),
    ({"app_plan_command": "x"}, "app_plan_command and app_migrate_back_command belong to"),
    ({"app_migrate_wait_seconds": 0}, "app_migrate_wait_seconds is 0: set 1 to 3600."),
    ({"app_migrate_revisions": {5: {"allow": ["drop"]}}}, "app_migrate_revisions has 5, a number: put it in"),
    ({"app_migrate_revisions": {"b2": {"alow": ["drop"]}}}, "app_migrate_revisions.b2.alow is unknown:"),
    ({"app_migrate_revisions": {"b2": {"allow": ["dorp"]}}}, "app_migrate_revisions allows dorp: the words"),
    ({"app_migrate_database": "postgresql+asyncpg://x"}, "app_migrate_database is not a URL: start it with"),
    ({"app_manage_command": "python -c 'x"}, "app_manage_command 'python -c 'x' is no command: close its"),
    (
        {"app_settings": {"LOG-LEVEL": "INFO"}, "app_known_settings": ["LOG-LEVEL"]},
        "Not names of environment",
    ),
    (
        {"app_environment": {"REDIS_KEY_PREFIX": "a"}, "app_settings": {"REDIS_KEY_PREFIX": "b"}},
        "Set in app_environment and again as a setting or secret: redis_key_prefix; remove one of them.",
    ),
    (
        {"app_source": str(ROOT / "tests/apps/notes"), "app_secrets": {"environment": "x"}},
        "app_secrets has a secret `environment`, the name of a file of the platform",
    ),
    ({"app_state": ["../etc"]}, "app_state has a name that is no directory name"),
    ({"app_state": ["media", {"name": "media"}]}, "app_state names a directory twice"),
    ({"app_state": [{"name": "media", "path": "../x"}]}, "app_state has a path outside of the code"),
    ({"app_state": [{"name": "media", "serve": "/x"}]}, "app_state has unknown keys: serve. Use name, path"),
    (
        {"app_check_requests": [{"path": "/login", "body": {}, "form": {}}]},
        "app_check_requests: request 1 (/login) has a body and a form: remove one.",
    ),
    ({"app_check_requests": [{"path": "login"}]}, "(login) has a path without a slash in front."),
    (
        {"app_check_requests": [{"path": "/", "keep": {"csrf": "match name=(a)(b)"}}]},
        "request 1 (/) keeps csrf: use letters, and one group in a regular expression.",
    ),
    (
        {"app_secrets": {"redis_password": 123456}},
        "app_secrets has values that are no strings: put redis_password in",
    ),
    ({"app_settings": {"REDIS_KEY_PREFIX": "a\nb"}}, "app_settings has a value of several lines"),
    (
        {"app_settings": {"LOG_LEVEL": "info"}},
        "The app refuses its settings: LOG_LEVEL: Input should be 'DEBUG'",
    ),
    (
        {"app_secrets": {"secret_key": "changeme" * 8}},
        "SECRET_KEY is a well-known or guessable value: generate a random one. Correct app_settings or",
    ),
    (
        {"app_secrets": {"sentry_dsn": "nonsense"}},
        "SENTRY_DSN must be a DSN such as https://KEY@sentry.example/1.",
    ),
    (
        {"app_base_settings": {"DATABASE_URL": "postgresql://api@db/api"}},
        "DATABASE_SSL_CA is required if the database is on another host",
    ),
    ({"app_base_settings": {}}, "The app refuses its settings: DATABASE_URL is required."),
    (
        {"app_index_url": "https://me:secret@pypi.example.com/simple"},
        "has a login, which logs would show: move it to app_index_credentials (pypi.example.com).",
    ),
    ({"__app_judged": {"faults": ["x has no wheel.", "y is missing."]}}, "x has no wheel. y is missing."),
    ({"app_gunicorn": {"keep_alive": 1}}, "Gunicorn has no setting keep_alive: correct app_gunicorn."),
    ({"app_settings": {"NO_SUCH": 1}}, "The app knows no setting NO_SUCH: correct app_settings"),
    (
        {"app_settings": {"REQUEST_TIMEOUT": 20}},
        "REQUEST_TIMEOUT is 20, and an instance that stops waits 20 seconds (graceful_timeout)",
    ),
    (
        {"ansible_facts": FACTS | {"python_version": "3.9.2"}},
        "The app needs Python >=3.11, and web1 has 3.9.2: set python to a version that the app accepts.",
    ),
    (
        {"app_python": "3.10", "__app_found_python": {"version": "3.10.4", "id": "3.10.4-0"}},
        "The app needs Python >=3.11, and python brings 3.10.4: set python to a version that",
    ),
    (
        {"app_python": "three", "__app_found_python": {"version": "3.14.0"}},
        'python is three: write a version such as "3.14" or "3.14.0", or nothing',
    ),
    ({"app_python_archive": "/x.tar.gz"}, "python_archive or python_checksum is set without python"),
    (
        {"app_python": "3.14", "__app_found_python": {"fault": "It is broken.", "version": "3.14"}},
        "It is broken.",
    ),
    (
        {"app_worker_connections": 9, "app_connections_limit": 35},
        "web1 may need 36 database connections during a release (2 instances of 2 workers with 9 each)",
    ),
    ({"app_jobs": {"Mail": {"command": "x"}}}, "app_jobs has a name that is no job name"),
    ({"app_jobs": {"mail": {}}}, "app_jobs.mail.command is missing: set it to a string."),
    (
        {"app_jobs": {"mail": {"comand": "x", "command": "x"}}},
        "app_jobs.mail.comand is unknown: write",
    ),
    ({"app_jobs": {"mail": {"command": "x 'y"}}}, "app_jobs has a command with an open quote"),
    ({"app_jobs": {"mail": {"command": "x", "stop_timeout": 0}}}, "app_jobs has an invalid stop_timeout"),
    (
        {"app_jobs": {"mail": {"command": "x", "overlap": "no"}}},
        "app_jobs.mail.overlap must be true or false.",
    ),
    ({"app_jobs": {"purge": {"overlap": False}}}, "app_jobs has a job with both schedule and overlap"),
    ({"app_jobs": {"purge": {"schedule": "$x"}}}, "app_jobs has an invalid schedule"),
    (
        {"app_jobs": {"mail": {"command": "x", "restart": "never"}}},
        "has a job with an invalid restart",
    ),
    ({"app_jobs": {"purge": {"restart": "always"}}}, "app_jobs has a job with both schedule and restart"),
]


def role(**variables: Any) -> Role:
    """Return the role with sound variables but for these."""
    return Role("app", **SOUND | {"app_base_jobs": PURGE} | variables)


def test_an_app_that_cannot_be_asked_is_accepted() -> None:
    """Another app's settings are unknown here, and a wrong path on the host cannot be seen."""
    own = {"app_source": str(ROOT / "tests/apps/notes"), "app_base_settings": {}}
    assert "refuses its settings" not in " ".join(role(**own).refusals())
    remote = {"DATABASE_URL": "postgresql://api@db/api", "DATABASE_SSL_CA": "/etc/fastmetal/tls/ca.crt"}
    assert role(app_base_settings=remote).refusals() == []


def value(name: str, **variables: Any) -> Any:
    """Return a variable of the role."""
    templar = role(**variables).templar
    return templar.template(templar.available_variables[name])


def names(**variables: Any) -> list[str]:
    """Return the units of the jobs."""
    return [file["path"].rpartition("/")[2] for file in value("__app_job_list", **variables)]


def test_sound_variables_are_accepted() -> None:
    assert role().refusals() == []


@pytest.mark.parametrize(("variables", "part"), REFUSED, ids=[part[:50] for _, part in REFUSED])
def test_a_fault_gets_one_sentence(variables: dict[str, Any], part: str) -> None:
    (sentence,) = role(**variables).refusals()
    assert part in sentence
    assert sentence.endswith(".")


def test_an_operators_job_keeps_the_base_jobs() -> None:
    purge = ["api-job-purge.service", "api-job-purge.timer"]
    assert names() == ["api-workers.target", *purge]
    assert names(app_jobs={"mail": {"command": "x"}}) == [
        "api-workers.target",
        *purge,
    ]
    workers = value("__app_worker_list", app_jobs={"mail": {"command": "x"}})
    assert [file["path"] for file in workers] == ["/etc/api/workers/mail.service"]


def test_null_or_false_removes_a_job() -> None:
    assert names(app_jobs={"purge": None}) == ["api-workers.target"]
    assert names(app_jobs={"purge": False}) == ["api-workers.target"]


def test_a_field_of_a_base_job_is_changed_alone() -> None:
    (purge,) = value("__app_jobs", app_jobs={"purge": {"schedule": "hourly"}})
    assert purge == {"name": "purge", "command": "python -m app.manage purge", "schedule": "hourly"}


BEFORE = {
    "release": "1.1-0123456789ab",
    "previous": "1.0-0123456789ab",
    "candidates": ["1.0-0123456789ab", "1.1-0123456789ab"],
    "barriers": {},
}


@pytest.mark.parametrize(
    ("variables", "before", "part"),
    [
        ({}, {}, ""),
        ({"app_rollback_release": "1.0"}, {}, ""),
        ({"__app_operation": "restart"}, {"previous": ""}, ""),
        ({}, {"release": "", "previous": ""}, "No release is live on this host, run deploy.yml."),
        ({}, {"previous": ""}, "The history knows no earlier release that is still on this host"),
        (
            {"app_rollback_release": "7"},
            {},
            "app_rollback_release 7 fits 0 releases of this host; it has",
        ),
        (
            {},
            {"barriers": {"1.0-0123456789ab": "1.1 brought it to revision 0005"}},
            "1.1 brought it to revision",
        ),
    ],
)
def test_a_target_that_cannot_work_is_refused(
    variables: dict[str, Any], before: dict[str, Any], part: str
) -> None:
    state = BEFORE | before
    fleet = {"__app_fleet": [{"__app_before": state}], "__app_before": state}
    made = role(**{"__app_operation": "rollback", **fleet, **variables})
    made.faults = made.templar.available_variables["__app_target_faults"]
    assert [part in sentence for sentence in made.refusals()] == ([True] if part else [])


def test_hosts_that_disagree_need_a_named_release() -> None:
    fleet = [{"__app_before": BEFORE}, {"__app_before": BEFORE | {"previous": "0.9-0123456789ab"}}]
    made = role(__app_operation="rollback", __app_fleet=fleet, __app_before=BEFORE)
    made.faults = made.templar.available_variables["__app_target_faults"]
    (sentence,) = made.refusals()
    assert sentence.endswith("name it with -e app_rollback_release=.")


@pytest.mark.parametrize(
    ("variables", "network"),
    [
        ({}, {"PrivateNetwork=yes", "IPAddressDeny=any"}),
        (
            {"app_egress": "none", "app_allowed_addresses": ["192.0.2.9"]},
            {"PrivateNetwork=yes", "IPAddressDeny=any"},
        ),
        (
            {
                "app_base_addresses": ["192.0.2.1"],
                "app_egress": "none",
                "app_allowed_addresses": ["192.0.2.9"],
            },
            {"PrivateNetwork=no", "IPAddressDeny=any", "IPAddressAllow=192.0.2.1"},
        ),
        (
            {"app_base_addresses": ["192.0.2.1"], "app_allowed_addresses": ["192.0.2.9"]},
            {
                "PrivateNetwork=no",
                "IPAddressDeny=any",
                "IPAddressAllow=192.0.2.1",
                "IPAddressAllow=192.0.2.9",
            },
        ),
        ({"app_egress": "internet"}, {"PrivateNetwork=no"}),
    ],
)
def test_egress_has_one_meaning_with_and_without_remote_servers(
    variables: dict[str, Any], network: set[str]
) -> None:
    properties = value("__app_properties", **variables)
    assert {item for item in properties if item.startswith(("PrivateNetwork=", "IPAddress"))} == network
