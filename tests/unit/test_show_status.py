"""show_status names every problem of a host and every difference between hosts that must be alike."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import MagicMock

import pytest

from plugins.action import show_status

SERVICE: dict[str, Any] = {
    "runs": True,
    "release": {"id": "1.0", "commit": "0123456789", "since": 0, "canary": False},
    "workers": 2,
    "last_deploy": {
        "action": "deploy",
        "result": "ok",
        "by": "ann",
        "time": "2026-01-02T03:04:05Z",
    },
    "lock": None,
    "configuration": "aaaa",
    "configured": 0.0,
    "revision": None,
}


def status(**changes: Any) -> dict[str, Any]:
    """Return the status of a healthy app host with one service, with changes of either."""
    own = {key: changes.pop(key) for key in SERVICE if key in changes}
    return {
        "services": {"api": SERVICE | own},
        "certificates": {"host": 60},
        "expiring": [],
        "renewals": {},
        "backups": {},
        "disks": {"/": 10, "/srv": 20},
        "units": {"nginx.service": "active"},
        "maintenance": {},
        "alerts": [],
        "leftovers": {},
        "groups": ["app"],
        **changes,
    }


BACKUPS = {
    "time": 1000,
    "faults": [],
    "backups": {"1": {"last": 900}},
    "drill": {},
    "kept": [],
    "same_disk": False,
}
FAILED = {"action": "deploy", "result": "failed", "by": "ann", "time": "2026-01-02T03:04:05Z"}
PROBLEMS = [
    ({}, None),
    (
        {"units": {"a.service": "failed (failed)"}},
        "a.service is failed (failed): look at `journalctl -u a.serv",
    ),
    ({"units": {"a.service": "missing"}}, "a.service is missing: run site.yml."),
    (
        {"certificates": {"served": 13}, "expiring": ["served"]},
        "the certificate 'served' expires in 13 days: run site.yml, which renews it.",
    ),
    ({"certificates": {"served": 5}}, None),
    (
        {"renewals": {"api": {"failed": 2, "error": "ca: away", "next": 0}}},
        "the certificate 'api' was not renewed in 2 attempts (ca: away): fix the cause, then run",
    ),
    ({"renewals": {"api": {"failed": 0, "error": "", "next": 0}}}, None),
    ({"backups": BACKUPS}, None),
    (
        {"backups": BACKUPS | {"faults": ["repository 1: away"]}},
        "the backups have a fault: repository 1: away: docs",
    ),
    ({"backups": BACKUPS | {"time": 200_000}}, "the newest backup in repository 1 is of 1970-01-01"),
    (
        {"backups": BACKUPS | {"behind_bytes": 1 << 25, "behind_seconds": 301}},
        "32 MiB of WAL are in no repository",
    ),
    ({"backups": BACKUPS | {"drill": {"begun": 0, "result": "failed", "reason": "x"}}}, " failed: x."),
    (
        {"backups": BACKUPS | {"kept": ["/a.before"]}},
        "a restore has kept /a.before: once it is not needed, run",
    ),
    ({"disks": {"/var": 90}}, "the disk of /var is 90 % full."),
    ({"disks": {"/var": 89}}, None),
    ({"workers": 0}, "release 1.0 of api is current, but it does not run."),
    ({"release": None, "workers": None}, None),
    (
        {"release": {"id": "2.0", "canary": True}},
        "2.0 of api is a canary: it serves, and rolls back unless it is pro",
    ),
    (
        {"lock": {"by": "eve", "from": "x", "time": "2026-01-02T03:04:05Z"}},
        "web1: api is locked by eve from x since 2026-",
    ),
    (
        {"last_deploy": FAILED | {"reason": "no readiness"}},
        "failed (no readiness): fix the cause, then repeat it or run restart.yml -e service=api.",
    ),
    ({"last_deploy": FAILED | {"result": "rolled_back"}}, "web1: the last deploy of api, 2026-01-0"),
    # Only a run that wrote the configuration again and did not fail mends a failed one.
    (
        {"last_deploy": FAILED | {"action": "configure"}, "configured": 1767323044.0},
        "the last configure of api, 2026-",
    ),
    ({"last_deploy": FAILED | {"action": "configure"}, "configured": 1767323046.0}, None),
    ({"last_deploy": FAILED, "configured": 1767323046.0}, "the last deploy of api, 2026-"),
    (
        {"alerts": None},
        "Alertmanager does not answer: look at `journalctl -u prometheus-alertmanager` there.",
    ),
    (
        {"leftovers": {"redis": ["redis-server@cache.service"]}},
        "the role redis is left from before and belongs to no group: remove it with `systemctl disable --now"
        " redis-server@cache.service` and `rm /etc/fastmetal/functions/redis.json` there.",
    ),
    ({"leftovers": {"nginx": []}}, "remove it with `rm /etc/fastmetal/functions/nginx.json` there."),
    (
        {"leftovers": {"app shop": ["shop.socket", "shop@1.service"]}},
        "shop is left from before and is not in services: remove it and its data with remove_service.yml"
        " -e service=shop.",
    ),
    (
        {"leftovers": {"app board": ["board.socket"]}},
        "the service board is left from before and runs elsewhere now: remove it with `systemctl disable"
        " --now board.socket` there.",
    ),
    (
        {"maintenance": {"api": {"since": 0, "message": "Moving."}}},
        "(Moving.): maintenance.yml -e maintenance=off -e service=api.",
    ),
]


@pytest.mark.parametrize(("changes", "part"), PROBLEMS)
def test_problems_of_a_host(changes: dict[str, Any], part: str | None) -> None:
    found = list(show_status.host_problems("web1", status(**changes), ["api", "board"]))
    assert [sentence.startswith("web1") for sentence in found] == ([True] if part else [])
    assert [part is not None and part in sentence for sentence in found] == ([True] if part else [])


def test_an_unreachable_host_has_one_problem() -> None:
    found = list(show_status.host_problems("web1", {"unreachable": "Connection refused"}, []))
    assert found == ["web1 cannot be reached: Connection refused."]


def test_each_alert_is_named_once() -> None:
    alert = {
        "name": "HostDown",
        "instance": "web2",
        "since": "2026-01-02T03:04:05.678Z",
        "summary": "It is down.",
    }
    slow = alert | {"name": "Slow", "instance": ""}
    fleet = {
        "mon1": status(alerts=[alert, slow]),
        "mon2": status(alerts=[alert | {"since": "2026-01-02T03:05:05.678Z"}]),
        "mon3": status(alerts=None),
        "off": {"unreachable": "x"},
    }
    down, other = show_status.alert_problems(fleet)
    assert down.startswith("web2: alert HostDown since 2026-01-0")
    assert down.endswith(": It is down.")
    assert other.startswith("The environment: alert Slow since 2026-")


def drift(**hosts: dict[str, Any]) -> list[str]:
    """Return the differences between hosts."""
    return list(show_status.drift(hosts))


def test_equal_hosts_do_not_differ() -> None:
    assert drift(web1=status(), web2=status()) == []


def test_different_releases_are_named_by_host() -> None:
    other = status(release={"id": "0.9", "canary": False})
    assert drift(web1=status(), web2=other) == [
        "The live release of api differs: web1 has 1.0, web2 has 0.9: deploy again."
    ]


def test_hosts_without_a_release_do_not_count() -> None:
    database = status(release=None, runs=False, configuration="bbbb", groups=["postgres"])
    assert drift(web1=status(), db1=database, off={"unreachable": "x", "groups": ["app"]}) == []


def test_different_configurations_are_named() -> None:
    assert drift(web1=status(), web2=status(configuration="bbbb")) == [
        "The configuration of api differs between web1, web2: run site.yml."
    ]


def test_hosts_that_also_run_the_database_are_compared_with_each_other() -> None:
    groups = ["app", "postgres", "edge"]
    own = [status(groups=groups, configuration="bbbb") for _ in range(2)]
    assert drift(web1=status(), data1=own[0], data2=own[1]) == []
    own[1]["services"]["api"]["configuration"] = "cccc"
    assert drift(web1=status(), data1=own[0], data2=own[1]) == [
        "The configuration of api differs between data1, data2: run site.yml."
    ]


def test_columns_are_as_wide_as_their_cells() -> None:
    lines = show_status.table({"web1": status(), "a-long-name": {"unreachable": "Connection refused"}})
    header, web1, unreachable = lines
    assert header.startswith("host         service  live release  commit    since ")
    assert web1.startswith("web1         api      1.0           01234567  1970-01-0")
    assert " deploy ok by ann, 2026-01-02 " in web1
    assert web1.endswith("  60 days       -       20 % of /srv  1/1 active")
    assert unreachable == "a-long-name  unreachable: Connection refused"


def test_each_service_has_a_row() -> None:
    fleet = {"web1": status(), "db1": status(services={})}
    fleet["web1"]["services"]["shop"] = SERVICE | {"release": None, "workers": None, "last_deploy": None}
    _, api, shop, database = show_status.table(fleet)
    assert api.endswith("1/1 active")
    assert shop.split() == ["web1", "shop", *["-"] * 6]
    assert database.split()[:8] == ["db1", *["-"] * 7]
    assert database.endswith("1/1 active")


def test_services_differ_by_themselves() -> None:
    web1, web2 = status(), status()
    web1["services"]["shop"] = SERVICE | {"release": SERVICE["release"] | {"id": "7"}}
    web2["services"]["shop"] = SERVICE | {"configuration": "bbbb"}
    assert drift(web1=web1, web2=web2) == [
        "The live release of shop differs: web1 has 7, web2 has 1.0: deploy again.",
        "The configuration of shop differs between web1, web2: run site.yml.",
    ]


def show(results: dict[str, Any], **arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """Run the action; return its result and what it displays."""
    words = {"results": results, "services": ["api"], "format": "table", "strict": False, **arguments}
    task = MagicMock(args=words, async_val=0)
    action = show_status.ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())
    action._display = MagicMock()
    hostvars = {host: {"group_names": ["app"]} for host in results}
    result = action.run(task_vars={"hostvars": hostvars})
    return result, [call.args[0] for call in action._display.display.call_args_list]


BROKEN = {"web1": {"status": status(workers=0)}}


def test_only_strict_fails() -> None:
    assert "failed" not in show(BROKEN)[0]
    assert "failed" not in show({"web1": {"status": status()}}, strict=True)[0]
    result, _ = show(BROKEN, strict=True)
    assert result["failed"]
    assert "does not run" in result["msg"]


def test_says_that_nothing_is_wrong() -> None:
    assert show({"web1": {"status": status()}})[1][-1] == "Nothing is wrong."


def test_json_is_one_line_with_the_problems() -> None:
    (line,) = show(BROKEN, format="json")[1]
    shown = json.loads(line)
    assert shown["hosts"]["web1"]["services"]["api"]["workers"] == 0
    assert len(shown["problems"]) == 1


def test_an_unreachable_host_has_the_reason_without_the_command() -> None:
    message = "Task failed: Failed to connect to the host via ssh:\nhint over ssh: No route to host."
    _, lines = show({"web1": {"unreachable": True, "msg": message}})
    assert "web1 cannot be reached: No route to host." in lines
