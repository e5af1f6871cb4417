"""The services of an environment: their entries, their hosts, and what preflight refuses."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.filter import services
from plugins.plugin_utils.services import memory_faults, service_faults
from plugins.plugin_utils.specs import load_specs, value_faults

SPEC = load_specs()["preflight"]["services"]
VARIABLES = {"groups": {"app": ["web1", "web2"]}}


def test_an_entry_without_a_source_is_the_included_service() -> None:
    entries: dict[str, Any] = {"api": {"workers": 3}, "shop": {"source": "/shop"}}
    merged = services.service_entries(entries, {"hosts": []}, {"factory": "app:app", "workers": 1})
    assert merged == {
        "api": {"hosts": [], "factory": "app:app", "workers": 3},
        "shop": {"hosts": [], "source": "/shop"},
    }


def test_a_service_runs_on_its_hosts_or_on_all() -> None:
    entries: dict[str, dict[str, Any]] = {
        "api": {"hosts": []},
        "shop": {"hosts": ["web2", "web1"]},
        "blog": {"hosts": ["web2"]},
    }
    assert services.services_on(entries, "web1") == ["api", "shop"]
    assert services.service_hosts(entries["shop"], ["web1", "web2", "web3"]) == ["web1", "web2"]
    assert services.service_hosts(entries["api"], ["web1", "web2", "web3"]) == ["web1", "web2", "web3"]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"shop": {"workers": 2}}, None),
        ({"shop": {"worker": 2}}, "services.shop.worker is unknown: did you mean workers?"),
        (
            {"shop": {"workers": "2"}},
            "services.shop.workers must be a whole number, not '2': remove its quotes",
        ),
        ({"shop": None}, "services.shop is empty: set it to a mapping"),
        ({"shop": ["x"]}, "services.shop must be a mapping, not ['x']"),
    ],
)
def test_keys_of_an_entry_have_the_spec_of_the_role(entries: dict[str, Any], sentence: str | None) -> None:
    found = list(value_faults("services", SPEC, entries))
    assert [one.startswith(sentence or "") for one in found] == ([True] if sentence else [])


def test_secrets_of_an_entry_are_not_shown() -> None:
    (sentence,) = value_faults("services", SPEC, {"shop": {"secrets": "hunter2"}})
    assert sentence == "services.shop.secrets must be a mapping"


@pytest.mark.parametrize(
    ("entries", "more", "part"),
    [
        ({"shop": {"hosts": ["web1"]}}, {}, None),
        ({}, {}, "services is empty: name a service"),
        (
            {"My_Shop": {}},
            {},
            "services has the name 'My_Shop', which no account, unit and database can have",
        ),
        ({"root": {}}, {}, "services has the name 'root', which no account"),
        ({"shop": {"hosts": ["web3"]}}, {}, "services.shop.hosts has web3, not in the group app: correct"),
        ({"shop": {"workers": 2}}, {"app_workers": 3}, "app_workers and services.shop.workers are both set"),
    ],
)
def test_faults_between_services(entries: dict[str, Any], more: dict[str, Any], part: str | None) -> None:
    found = list(service_faults(entries, VARIABLES | more))
    assert [part is not None and part in sentence for sentence in found] == ([True] if part else [])


@pytest.mark.parametrize(
    ("limits", "percent", "part"),
    [
        ({"api": 0, "shop": 0}, 90, None),
        ({"api": 500, "shop": 0}, 50, None),
        (
            {"api": 500, "shop": 600},
            0,
            "2 x 500 MiB for api + 2 x 600 MiB for shop are 2200 MiB, and the host has 2000: lower memory_mb",
        ),
        ({"api": 600}, 50, "2 x 600 MiB for api + 50 % for Postgres are 2200 MiB"),
    ],
)
def test_the_memory_of_a_host_is_enough(limits: dict[str, int], percent: int, part: str | None) -> None:
    found = list(memory_faults(limits, percent, 2000))
    assert [part is not None and part in sentence for sentence in found] == ([True] if part else [])
