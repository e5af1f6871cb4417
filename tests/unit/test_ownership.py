"""Preflight refuses what an operator has on a host, and takes it over only if preflight_take_over says so."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.module_utils import ownership

OURS = {"environment": "lab", "services": ["api"]}
HOLDINGS = {
    "nginx": ["/etc/nginx/sites-enabled/shop"],
    "app": {"api": ["the account api (/home/api, /bin/bash)"]},
}


def judge(marks: dict[str, Any], probe: dict[str, Any] | None = None, **wanted: Any) -> list[str]:
    """Return the sentences about a host."""
    found = {"marks": marks, "holdings": {}, "keys": {}, **(probe or {})}
    defaults: dict[str, Any] = {
        "environment": "lab",
        "services": ["api"],
        "login": None,
        "admin": "ops",
        "admin_keys": [],
        "accounts": [],
        "base_accounts": [],
        "roles": ["preflight", "base", "app", "nginx"],
        "take_over": [],
    }
    return list(ownership.ownership_faults(found, defaults | wanted))


def test_a_bare_host_is_taken() -> None:
    assert judge({}) == []


def test_each_role_has_a_sentence_with_the_remedy() -> None:
    app, nginx = judge({}, {"holdings": {**HOLDINGS, "redis": ["the data of redis-server"]}})
    assert app.startswith(
        "has the account api (/home/api, /bin/bash), which the role app would take over: use"
    )
    assert (
        "add nginx to preflight_take_over (copies of replaced files are kept in /etc/fastmetal/repl" in nginx
    )


def test_marked_roles_and_those_to_take_over_pass() -> None:
    assert judge({"nginx": OURS, "app": OURS}, {"holdings": HOLDINGS}) == []
    assert judge({}, {"holdings": HOLDINGS}, take_over=["app", "nginx"]) == []
    assert len(judge({"nginx": OURS}, {"holdings": HOLDINGS})) == 1


def test_hosts_of_0_1_0_have_no_environment() -> None:
    assert judge({"nginx": {}, "app": {"services": ["api"]}, "base": {}}, {"holdings": HOLDINGS}) == []


def test_a_host_belongs_to_one_environment() -> None:
    (sentence,) = judge({"nginx": OURS | {"environment": "staging"}})
    assert sentence.startswith(
        "belongs to the environment staging, not to lab: remove it from this inventory"
    )


@pytest.mark.parametrize("role", ["app", "postgresql"])
def test_another_name_would_start_an_empty_service(role: str) -> None:
    (sentence,) = judge({role: OURS}, services=["shop"])
    assert sentence.startswith(
        "has the service api, and services has shop instead: an empty service would start beside"
    )
    assert judge({role: OURS}, services=["shop"], take_over=["service"]) == []
    assert judge({"nginx": OURS}, services=["shop"]) == []


def test_a_removed_service_is_named_and_a_further_one_starts() -> None:
    both = OURS | {"services": ["api", "shop"]}
    assert judge({"app": both}) == judge({"app": OURS}, services=["api", "shop"]) == []
    assert ownership.removed_services({"app": both}, {"api": {}}) == ["shop"]
    assert ownership.removed_services({"nginx": both}, {"api": {}}) == []


def test_what_has_the_new_name_is_not_ours() -> None:
    holdings = {"app": {"shop": ["the account shop (/home/shop, /bin/bash)"]}}
    (sentence,) = judge({"app": OURS}, {"holdings": holdings}, services=["shop"], take_over=["service"])
    assert sentence.startswith("has the account shop")


def test_the_account_of_the_login_is_never_taken() -> None:
    (sentence,) = judge({}, {"holdings": HOLDINGS}, login="api", take_over=["app", "nginx"])
    assert sentence.startswith("api is the account that you log in with")
    assert judge({}, login="api", roles=["base"]) == []


@pytest.mark.parametrize(
    ("marks", "given", "take_over", "refused"),
    [
        ({}, ["ssh-ed25519 AAAAone a@b"], [], True),
        ({}, ["ssh-ed25519 AAAAone", "ssh-rsa AAAAtwo x"], [], False),
        ({}, [], ["base"], False),
        ({"base": OURS}, [], [], False),
    ],
)
def test_keys_of_the_administrator(
    marks: dict[str, Any], given: list[str], take_over: list[str], refused: bool
) -> None:
    probe = {"keys": {"ops": ["AAAAone", "AAAAtwo"], "other": ["AAAAthree"]}}
    found = judge(marks, probe, admin_keys=given, take_over=take_over)
    assert [sentence.startswith("the account ops has keys that base_admin") for sentence in found] == (
        [True] if refused else []
    )
    assert judge(marks, probe, admin="", take_over=take_over) == []


@pytest.mark.parametrize(
    ("marks", "changes", "refused"),
    [
        ({}, {}, True),
        ({}, {"accounts": ["deploy"]}, False),
        ({}, {"base_accounts": ["deploy"]}, False),
        ({}, {"login": "deploy"}, False),
        ({}, {"take_over": ["ssh"]}, False),
        ({}, {"roles": ["base"]}, False),
        ({"ssh": OURS}, {}, False),
    ],
)
def test_accounts_that_would_lose_their_login(
    marks: dict[str, Any], changes: dict[str, Any], refused: bool
) -> None:
    probe = {"keys": {"deploy": ["AAAAone"], "quiet": []}}
    found = judge(marks, probe, **{"roles": ["ssh"], "admin": ""} | changes)
    assert [sentence.startswith("deploy can log in with a key") for sentence in found] == (
        [True] if refused else []
    )


LISTENERS = [
    {"port": 9100, "program": "node_exporter", "unit": "node_exporter.service"},
    {"port": 443, "program": "nginx", "unit": "nginx.service"},
    {"port": 5432, "program": "postgres", "unit": "postgresql@17-main.service"},
    {"port": 6379, "program": "redis-server", "unit": "redis-server.service"},
    {"port": 80, "program": "docker-proxy", "unit": ""},
]


@pytest.mark.parametrize(
    ("unit", "port", "holder"),
    [
        ("nginx.service", 443, None),
        ("nginx.service", "443", None),
        ("nginx.service", 80, "docker-proxy"),
        ("prometheus-node-exporter.service", 9100, "node_exporter (node_exporter.service)"),
        ("postgresql@*-main.service", 5432, None),
        ("redis-server@cache.service", 6379, None),
        ("grafana-server.service", 3000, None),
        ("prometheus.service", 443, "nginx (nginx.service)"),
    ],
)
def test_ports_are_judged_by_unit(unit: str, port: int | str, holder: str | None) -> None:
    found = list(ownership.port_faults(LISTENERS, {unit: [port]}))
    assert found == (
        [f"port {port} is taken by {holder}, and {unit} needs it: stop or move that program, then run again"]
        if holder
        else []
    )


def test_long_lists_are_shortened() -> None:
    assert ownership.listed(["a"]) == "a"
    assert ownership.listed(["a", "b", "c"]) == "a, b and c"
    assert ownership.listed(list("abcdef")) == "a, b, c and 3 more"
