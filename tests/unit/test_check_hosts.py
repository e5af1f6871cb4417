"""The checks of preflight, one by one; tests/hosts/test_preflight.py runs them on hosts."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from plugins.action import check_hosts
from plugins.plugin_utils import specs

USERS = {
    "type": "list",
    "elements": "dict",
    "options": {"name": {"required": True}, "password": {"no_log": True}},
}
VALUES = [
    ({"type": "int"}, 12, []),
    ({"type": "int"}, "12", ["x must be a whole number, not '12': remove its quotes"]),
    ({"type": "int"}, True, ["x must be a whole number, not True"]),
    ({"type": "int"}, "1.5", ["x must be a whole number, not '1.5'"]),
    ({"type": "float"}, 1.5, []),
    ({"type": "float"}, 1, []),
    ({"type": "float"}, "1.5", ["x must be a number, not '1.5': remove its quotes"]),
    ({"type": "bool"}, "yes", ["x must be true or false, not 'yes': remove its quotes"]),
    ({"type": "str"}, 1.10, ["x must be a string, not 1.1: put it in quotes"]),
    ({"type": "str", "no_log": True}, 123456789012, ["x must be a string: put it in quotes"]),
    ({"type": "bool"}, "maybe", ["x must be true or false, not 'maybe'"]),
    ({"type": "str"}, ["a"], ["x must be a string, not ['a']"]),
    ({"type": "dict"}, "a=b", ["x must be a mapping, not 'a=b'"]),
    ({"type": "list", "elements": "int"}, [1, "b"], ["x[1] must be a whole number, not 'b'"]),
    ({"type": "str", "choices": ["rdb", "aof"]}, "disk", ["x must be one of rdb, aof, not 'disk'"]),
    ({"type": "list", "elements": "str", "choices": ["a"]}, ["b"], ["x[0] must be one of a, not 'b'"]),
    ({"type": "str", "default": ""}, None, ["x is empty: set it to a string, or remove it"]),
    ({"type": "list", "required": True}, None, ["x is empty: set it to a list"]),
    ({"type": "int", "no_log": True}, "hidden", ["x must be a whole number"]),
    (USERS, [{"name": "a", "password": "b"}], []),
    (USERS, [{"nam": "a", "name": "a"}], ["x[0].nam is unknown: did you mean name?"]),
    (USERS, [{"password": ["hidden"]}], ["x[0].name is missing: add it", "x[0].password must be a string"]),
]


@pytest.mark.parametrize(("option", "value", "sentences"), VALUES)
def test_values(option: dict[str, Any], value: Any, sentences: list[str]) -> None:
    assert sorted(specs.value_faults("x", option, value)) == sorted(sentences)


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("a_port", 0, False),
        ("a_port", 1, True),
        ("a_port", 65536, False),
        ("a_ports.node", 65536, False),
        ("a_ports.node", 1, True),
        ("a_percent", 101, False),
        ("a_days", 0, False),
        ("a_number", 99999999, True),
        ("ports[0].port", 70000, False),
    ],
)
def test_bounds(name: str, value: Any, fits: bool) -> None:
    assert (list(specs.value_faults(name, {"type": "int"}, value)) == []) is fits


SPECS: dict[str, dict[str, Any]] = {
    "web": {"web_port": {"type": "int", "default": 80}, "web_names": {"type": "list", "required": True}},
    "port": {"also_port": {"type": "int", "default": 80}},
    "data": {"data_password": {"type": "str", "no_log": True, "required": True}},
    "all": {
        "where": {"type": "str", "description": "Where it is."},
        "secret_x": {"type": "str", "no_log": True},
    },
}


def judge(*roles: str, own: tuple[str, ...] = (), **variables: Any) -> list[str]:
    """Return the sentences about a host's variables."""
    trusted = {key: trust_as_template(x) if isinstance(x, str) else x for key, x in variables.items()}
    templar = Templar(DataLoader(), {"web_port": 80, **trusted})
    return list(check_hosts.variable_faults(roles, SPECS, trusted, templar, own))


def test_variables() -> None:
    assert judge("web", web_names=["a"], web_port="{{ 8000 + 80 }}") == []
    assert judge("all", where="{{ web_port }} is a role's default") == []
    inventory = str(specs.ROLES.parent / "inventories/shop")
    assert judge("all", inventory_dir=inventory) == [
        "where is not set: set it in inventories/shop/group_vars/all/main.yml (Where it is)"
    ]
    assert judge("data", data_password="{{ secret_x }}", inventory_dir=inventory) == [
        "secret_x is not set: make the environment's secrets with `make secrets ENV=shop`"
    ]
    assert judge("data", data_password="{{ secret_x }}", inventory_dir="/srv/shop") == [
        "secret_x is not set: move /srv/shop below inventories, then make the environment's secrets with"
        " `make secrets ENV=shop`"
    ]
    assert judge("data", data_password="{{ typo }}") == ["typo is not set, and data_password needs it"]


def test_a_computed_value_is_not_reported_with_its_cause() -> None:
    assert judge("web", "port", web_names=["a"], web_port=70000, also_port="{{ web_port }}") == [
        "web_port must be between 1 and 65535, not 70000"
    ]
    assert judge("port", web_names=["a"], also_port="{{ web_port + 70000 }}") == [
        "also_port must be between 1 and 65535, not 70080"
    ]


def test_unknown_variables() -> None:
    assert judge(web_prt=1, ansible_user="a", __mine="b") == ["web_prt is unknown: did you mean web_port?"]
    assert judge(colour="blue", own=("col*",)) == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, None),
        ({"host": "web1.shop.example"}, None),
        ({"host": "web_1"}, "the inventory's name of this host cannot be in a certificate: use at most 64"),
        ({"host": "w" * 65}, "the inventory's name of this host cannot be in a certificate"),
        ({"public_name": "192.0.2.1"}, None),
        ({"public_name": "https://shop.example"}, "public_name is 'https://shop.example': write a host name"),
        ({"public_name": "my_shop.example"}, "public_name is 'my_shop.example': write a host name"),
    ],
)
def test_names(changes: dict[str, str], part: str | None) -> None:
    sound = {"host": "web1", "public_name": "shop.example"}
    found = list(check_hosts.name_faults(**sound | changes))
    assert [part is not None and part in sentence for sentence in found] == ([True] if part else [])


def test_groups() -> None:
    assert list(check_hosts.group_faults(["app", "lab", "site_vienna"], ["site_*"])) == []
    assert list(check_hosts.group_faults(["postgress"], [])) == [
        "the inventory has the group postgress, which has no function: did you mean postgres?"
    ]
    (sentence,) = check_hosts.group_faults(["database"], [])
    assert sentence.endswith(
        "use app, backup, edge, monitoring, postgres, redis, or list it in preflight_own_groups"
    )


@pytest.mark.parametrize(
    ("reason", "part"),
    [
        ("Missing sudo password", "sudo asks for a password: run again with --ask-become-pass"),
        ("sudo: a password is required\r\n", "sudo asks for a password: run again with --ask-become-pass"),
        ("Incorrect sudo password", "the password for sudo is wrong: run again"),
        ("eve is not in the sudoers file.", "ansible_user may not use sudo"),
        (
            "/bin/sh: 1: /usr/bin/python3: not found\n",
            "cannot be managed (/bin/sh: 1: /usr/bin/python3: not found)",
        ),
        ("", "cannot be managed (no answer)"),
    ],
)
def test_reasons_of_an_unusable_host(reason: str, part: str) -> None:
    assert check_hosts.unusable_fault(reason).startswith(part)


@pytest.mark.parametrize(
    ("address", "clients", "alone"),
    [("127.0.0.1", [], True), ("127.0.0.1", ["10.1.2.3"], False), ("9.9.9.9", [], False)],
)
def test_a_host_that_is_watched_from_outside_listens_there(
    address: str, clients: list[str], alone: bool
) -> None:
    assert check_hosts.listens_to_itself(address, clients) is alone


@pytest.mark.parametrize(
    ("address", "public", "part"),
    [
        ("10.1.2.3", False, None),
        ("100.64.0.1", False, None),
        ("9.9.9.9", True, None),
        ("9.9.9.9", False, "set it to the address in a private network, or put a firewall in front"),
        ("db.internal", True, "not an IPv4 or IPv6 address"),
        ("[fd00::1]", True, "not an IPv4 or IPv6 address"),
        ("fd00::1", False, None),
        ("2a00::1", False, "set it to the address in a private network, or put a firewall in front"),
        ("fe80::1", True, "valid on one link only"),
        ("::ffff:10.1.2.3", False, "stands for an IPv4 one"),
    ],
)
def test_addresses(address: str, public: bool, part: str | None) -> None:
    found = list(check_hosts.address_faults(address, public=public))
    assert [part is not None and part in sentence for sentence in found] == ([True] if part else [])


def test_what_a_role_has_by_default_is_within_its_bounds() -> None:
    option = {"type": "int", "default": 0}
    assert list(specs.value_faults("a_workers", option, 0)) == []
    assert list(specs.value_faults("a_workers", {"type": "int"}, 0))


@pytest.mark.parametrize(
    ("login", "hint"),
    [
        ("root", "the first run closes root's login, so set ansible_user to ops"),
        ("ops", "see that it is on, and that ansible_host, ansible_user and your key are right"),
    ],
)
def test_a_login_of_root_that_is_refused_names_the_administrator(login: str, hint: str) -> None:
    output = "Failed to connect to the host over ssh: Permission denied (publickey).\n"
    assert check_hosts.unreachable_fault(output, login, "ops") == (
        f"cannot be reached (Permission denied (publickey)): {hint}"
    )
