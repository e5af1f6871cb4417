"""Filters of the role app: releases, failures and jobs."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from plugins.filter.release import (
    UNITS,
    failure_message,
    job_files,
    job_units,
    load_credentials,
    release_of_link,
    version_of_release,
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
    assert here == ["api-workers.target", *purge, "api-job-mail.service"]
    elsewhere = [PurePath(file["path"]).name for file in job_files([PURGE, MAIL], "api", scheduled=False)]
    assert elsewhere == ["api-workers.target", "api-job-mail.service"]


def test_each_unit_is_rendered_for_its_job_and_verified() -> None:
    _, service, timer = job_files([PURGE], "api")
    assert (service["template"], timer["template"]) == ("job.service.j2", "job.timer.j2")
    assert service["variables"] == timer["variables"] == {"__app_job": PURGE}
    assert service["validate"].startswith("systemd-analyze verify ")


def test_a_timer_starts_the_service_of_its_job() -> None:
    units = {unit["name"]: unit for unit in job_units(job_files([PURGE, MAIL], "api"))}
    assert [name for name, unit in units.items() if unit["triggered"]] == ["api-job-purge.service"]
    assert units["api-job-mail.service"]["files"] == [f"{UNITS}/api-job-mail.service"]
    assert units["api-workers.target"]["files"] == []
