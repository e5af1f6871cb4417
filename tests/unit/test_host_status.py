"""host_status reads a host's state from its files and from systemd."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from plugins.modules import host_status


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> host_status.HostState:
    """The state of a host whose directories are below the test's own."""
    for name in ("SRV", "RUN", "ETC", "MAINTENANCE"):
        (tmp_path / name / "api").mkdir(parents=True)
        monkeypatch.setattr(host_status, name, tmp_path / name)
    services = [{"name": "api", "runs": True, "database": False, "units": []}]
    params = {"services": services, "edge": False, "certificates": [], "alertmanager": ""}
    return host_status.HostState(MagicMock(params=params))


@pytest.fixture
def state(host: host_status.HostState) -> host_status.ServiceState:
    """The state of a service on the host."""
    return host_status.ServiceState(host.module, "api")


def make_instance(state: host_status.ServiceState, name: str, release: str) -> Path:
    """Install a release's instance and return its directory."""
    home: Path = state.home / "instances" / name
    home.mkdir(parents=True)
    (home / "release.json").write_text(json.dumps({"id": release}))
    return home


def test_without_a_release_there_is_none(state: host_status.ServiceState) -> None:
    assert state.release() is None
    assert state.workers() is None


def test_the_live_release_has_the_commit_of_its_last_entry(state: host_status.ServiceState) -> None:
    (state.home / "current").symlink_to(make_instance(state, "1.0-a.1", "1.0-a"))
    entries = [
        {"release": "1.0-a", "commit": "old"},
        {"release": "1.0-a", "commit": "new"},
        {"release": "1.0-a"},
        {"release": "0.9", "commit": "other"},
    ]
    (state.home / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    release = state.release()
    assert release
    assert (release["id"], release["commit"], release["canary"]) == ("1.0-a", "new", False)


def test_a_canary_is_live(state: host_status.ServiceState) -> None:
    (state.home / "current").symlink_to(make_instance(state, "1.0-a.1", "1.0-a"))
    (state.run / "canary").symlink_to(make_instance(state, "1.1-b.1", "1.1-b"))
    release = state.release()
    assert release
    assert (release["id"], release["canary"]) == ("1.1-b", True)


def test_the_configuration_ignores_what_differs_by_host(state: host_status.ServiceState) -> None:
    """The number of workers, and the credentials of the host that migrates."""
    assert state.configuration() is None
    settings = state.etc / "gunicorn.conf.py"
    settings.write_text("workers = 2\ntimeout = 30\n")
    first = state.configuration()
    settings.write_text("workers = 4\ntimeout = 30\n")
    assert state.configuration() == first
    settings.write_text("workers = 4\ntimeout = 60\n")
    assert state.configuration() != first
    settings.write_text("workers = 2\ntimeout = 30\n")
    (state.etc / "credentials").mkdir()
    (state.etc / "credentials/database_owner_password").touch()
    (state.etc / "credentials/migration-database").touch()
    assert state.configuration() == first
    (state.etc / "credentials/key").touch()
    assert state.configuration() != first


def unit(name: str, active: str = "active", sub: str = "running", load: str = "loaded") -> dict[str, str]:
    """Return a unit as systemctl list-units does."""
    return {"unit": name, "load": load, "active": active, "sub": sub}


@pytest.mark.parametrize(
    ("listed", "patterns", "states"),
    [
        ([unit("nginx.service")], ["nginx.service"], {"nginx.service": "active"}),
        ([], ["nginx.service"], {"nginx.service": "missing"}),
        ([unit("a.service", load="not-found")], ["a.service"], {"a.service": "missing"}),
        (
            [unit("api@1.service"), unit("api@2.service", "inactive", "dead"), unit("api.socket")],
            ["api@*.service"],
            {"api@1.service": "active", "api@2.service": "inactive (dead)"},
        ),
        (
            [
                unit("x.service", "failed", "failed"),
                unit("y.service", "activating", "auto-restart"),
                unit("z.service", "inactive", "dead"),
            ],
            [],
            {"x.service": "failed (failed)", "y.service": "activating (auto-restart)"},
        ),
    ],
)
def test_units(listed: list[dict[str, str]], patterns: list[str], states: dict[str, str]) -> None:
    assert host_status.unit_states(listed, patterns) == states


def test_what_belongs_to_no_group_is_left_over() -> None:
    listed = [
        unit("redis-server@cache.service"),
        unit("nginx.service"),
        unit("api.socket"),
        unit("api@1.0-a.1.service"),
        unit("shop@1.service"),
        unit("shop-job-idle.service", "inactive", "dead"),
        unit("prometheus.service", load="not-found"),
    ]
    marks = ["app", "nginx", "redis", "prometheus"]
    built = ["api", "shop", "gone"]
    assert host_status.leftovers(listed, marks, ["nginx", "app"], ["api"], built) == {
        "app shop": ["shop@1.service"],
        "prometheus": [],
        "redis": ["redis-server@cache.service"],
    }
    # The host is no longer in the group app.
    assert host_status.leftovers(listed, ["app"], [], [], ["api", "shop"]) == {
        "app": ["api.socket", "api@1.0-a.1.service", "shop@1.service"]
    }


def test_firing_alerts_leave_the_watchdog_out() -> None:
    known = {"startsAt": "2026-01-02T03:04:05Z", "annotations": {"summary": "It is down."}}
    alerts = [
        known | {"labels": {"alertname": "HostDown", "instance": "web1"}},
        {"startsAt": "2026-01-02T03:04:05Z", "annotations": {}, "labels": {"alertname": "Slow"}},
        known | {"labels": {"alertname": "Watchdog"}},
    ]
    assert [(alert["name"], alert["instance"]) for alert in host_status.firing(alerts)] == [
        ("HostDown", "web1"),
        ("Slow", ""),
    ]


def test_an_alertmanager_without_an_answer_is_no_silence(host: host_status.HostState) -> None:
    assert host.alerts() == []
    host.module.params["alertmanager"] = "127.0.0.1:9"
    assert host.alerts() is None


def test_each_service_has_its_own_state(host: host_status.HostState, tmp_path: Path) -> None:
    shop = {"name": "shop", "runs": False, "database": True, "units": []}
    host.module.params["services"].append(shop)
    (tmp_path / "SRV/api/history.jsonl").write_text('{"action": "deploy"}\n')

    def answer(command: list[str], data: str | None) -> tuple[int, str, str]:
        assert data is None
        return (0, "0007\n" if command[:3] == ["runuser", "-u", "postgres"] else "", "")

    host.module.run_command = answer
    found = host.services()
    assert (found["api"]["runs"], found["shop"]["runs"]) == (True, False)
    assert (found["api"]["last_deploy"], found["shop"]["last_deploy"]) == ({"action": "deploy"}, None)
    assert (found["api"]["revision"], found["shop"]["revision"]) == (None, "0007")


def test_each_service_has_its_own_maintenance(host: host_status.HostState, tmp_path: Path) -> None:
    assert host.maintenance() == {}
    (tmp_path / "MAINTENANCE/api/on").write_text("Back at six.\n")
    (tmp_path / "MAINTENANCE/api/page.html").touch()
    assert {name: entry["message"] for name, entry in host.maintenance().items()} == {"api": "Back at six."}


def test_the_configuration_has_the_time_of_its_newest_file(state: host_status.ServiceState) -> None:
    assert state.configured() is None
    (state.etc / "credentials").mkdir()
    (state.etc / "credentials/key").touch()
    os.utime(state.etc / "credentials", (5, 5))
    os.utime(state.etc / "credentials/key", (7, 7))
    assert state.configured() == 7


def test_a_certificate_that_cannot_be_read_has_no_days_left(
    host: host_status.HostState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "bad"):
        (tmp_path / f"{name}.crt").write_text(name)
    paths = [str(tmp_path / f"{name}.crt") for name in ("good", "bad", "missing")]
    params: dict[str, Any] = host.module.params
    monkeypatch.setitem(params, "certificates", paths)

    def openssl(_: list[str], data: str) -> tuple[int, str, str]:
        dates = "notBefore=Oct 13 00:00:00 2029 GMT\nnotAfter=Jan 11 00:00:00 2030 GMT\n"
        return (0, dates, "") if data == "good" else (1, "", "unable to load")

    monkeypatch.setattr(host.module, "run_command", openssl)
    monkeypatch.setattr(time, "time", lambda: 1893456000 - 3600)  # 2029-12-31T23:00Z
    day = 86400
    assert host.certificates() == {"good": (10 * day + 3600, 90 * day), "bad": (0, 0)}


def test_certificates_of_the_role_acme_have_the_names_of_their_directories() -> None:
    names = map(host_status.certificate_name, (Path("/tls/public.crt"), Path("/live/api/fullchain.pem")))
    assert list(names) == ["public", "api"]
