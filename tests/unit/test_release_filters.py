"""Filters of the role app: releases, failures and jobs."""

from __future__ import annotations

import shlex
from pathlib import PurePath

import pytest

from plugins.filter.release import (
    UNITS,
    check_requests,
    failure_message,
    is_command,
    job_files,
    job_units,
    load_credentials,
    release_of_link,
    shell_words,
    state_entries,
    state_mounts,
    unit_words,
    version_of_release,
    worker_files,
)

PURGE = {"name": "purge", "command": "python -m app.manage purge", "schedule": "daily"}
MAIL = {"name": "mail", "command": "python -m app.mail"}


def test_the_version_is_the_release_without_its_hash() -> None:
    assert version_of_release("1.0.3-0123456789ab") == "1.0.3"
    assert version_of_release("1.0-rc1") == "1.0-rc1"


def test_the_release_of_a_link_has_no_number() -> None:
    assert release_of_link("/srv/api/instances/1.0.3-0123456789ab.2") == "1.0.3-0123456789ab"
    assert release_of_link("") == ""


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"msg": "no space"}, "no space"),
        ({}, "another host failed"),
        ({"msg": ""}, "another host failed"),
        ({"msg": "One or more items failed", "results": [{}, {"failed": True, "msg": "no unit"}]}, "no unit"),
    ],
)
def test_a_failure_has_one_message(result: dict[str, object], message: str) -> None:
    assert failure_message(result) == message


def test_secrets_are_loaded_once_and_in_order() -> None:
    assert load_credentials(["b", "a", "b"], "/etc/api/credentials") == [
        "LoadCredential=a:/etc/api/credentials/a",
        "LoadCredential=b:/etc/api/credentials/b",
    ]


def test_a_scheduled_job_has_a_timer_and_runs_on_one_host() -> None:
    here = [PurePath(file["path"]).name for file in job_files([PURGE, MAIL], "api")]
    purge = ["api-job-purge.service", "api-job-purge.timer"]
    assert here == ["api-workers.target", *purge]
    elsewhere = [PurePath(file["path"]).name for file in job_files([PURGE, MAIL], "api", scheduled=False)]
    assert elsewhere == ["api-workers.target"]
    assert [file["path"] for file in worker_files([PURGE, MAIL], "/etc/api/workers")] == [
        "/etc/api/workers/mail.service"
    ]


def test_each_unit_is_rendered_for_its_job_and_verified() -> None:
    _, service, timer = job_files([PURGE], "api")
    assert (service["template"], timer["template"]) == ("job.service.j2", "job.timer.j2")
    assert service["variables"] == timer["variables"] == {"__app_job": PURGE}
    assert service["validate"].startswith("systemd-analyze verify ")


def test_a_command_keeps_its_words_in_a_unit_and_in_a_shell() -> None:
    command = """celery -A 'my app' --queues=a,b "50% of $HOME" 'a "b" \\c' ''"""
    assert unit_words(command) == r'''celery -A "my app" --queues=a,b "50%% of $$HOME" "a \"b\" \\c" ""'''
    assert shlex.split(shell_words(command)) == shlex.split(command)
    assert [is_command(text) for text in ("a b", "", "a 'b", "a\nb")] == [True, False, False, False]


def test_a_check_without_requests_accepts_any_answer_but_a_server_error() -> None:
    assert check_requests([{"path": "/me"}], "/health") == [{"path": "/health"}, {"path": "/me"}]
    assert check_requests([{"path": "/me"}], "") == [{"path": "/me"}]
    (wanted,) = check_requests([], "")
    assert wanted["path"] == "/"
    assert 404 in wanted["status"]
    assert 500 not in wanted["status"]


def test_state_is_mounted_where_the_entry_says() -> None:
    state = state_entries(["data", {"name": "media", "path": "static/up", "serve_at": "/media/"}])
    assert state_mounts(state, "/var/lib/shop", "@CODE@") == [
        "BindPaths=/var/lib/shop/media:@CODE@/static/up"
    ]


def test_a_timer_starts_the_service_of_its_job() -> None:
    units = {unit["name"]: unit for unit in job_units(job_files([PURGE, MAIL], "api"))}
    assert [name for name, unit in units.items() if unit["triggered"]] == ["api-job-purge.service"]
    assert units["api-job-purge.service"]["files"] == [f"{UNITS}/api-job-purge.service"]
    assert units["api-workers.target"]["files"] == []
