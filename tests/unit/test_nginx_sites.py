"""How the services of an environment become the sites of an edge."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.filter.nginx_sites import (
    nginx_redirects,
    nginx_servers,
    service_names,
    service_sites,
    service_urls,
)
from tests.roles import Role

OWN: dict[str, Any] = {"hosts": [], "path": "/", "settings": {}, "source": "/home/me/app"}
HOSTS = {
    name: {"private_address": f"192.0.2.{number}", "__ports": {"app": 8443}}
    for number, name in enumerate(("web1", "web2"), start=1)
}


def sites(entries: dict[str, dict[str, Any]], *here: str, **variables: Any) -> list[dict[str, Any]]:
    """Return the sites of an edge of some services, of which some run on the edge's host."""
    entries = {name: OWN | entry for name, entry in entries.items()}
    names = service_names(entries, ["www.example.com"])
    found = service_sites(entries, names, here, list(HOSTS), HOSTS, {})
    role = Role("nginx", ansible_facts={"distribution_release": "trixie"}, nginx_sites=found, **variables)
    assert role.refusals() == []
    resolved: list[dict[str, Any]] = role.templar.template(role.templar.available_variables["__nginx_sites"])
    return resolved


def test_names_of_services() -> None:
    services = {
        "api": OWN,
        "shop": OWN | {"path": "/shop/"},
        "chat": OWN | {"names": ["*.test", "chat.test"]},
    }
    names = service_names(services, ["www.example.com"])
    assert names == {
        "api": ["www.example.com"],
        "shop": ["www.example.com"],
        "chat": ["*.test", "chat.test"],
    }
    assert service_names({"api": OWN, "shop": OWN}, ["www.example.com"])["shop"] == []
    assert service_urls(services, names) == {
        "api": "https://www.example.com",
        "shop": "https://www.example.com/shop",
        "chat": "https://chat.test",
    }
    services["shop"] |= {"root_path": ""}
    assert service_urls(services, names)["shop"] == "https://www.example.com"


def test_a_service_on_the_edges_host_has_a_socket_and_another_one_its_app_hosts() -> None:
    api, shop = sites({"api": {}, "shop": {"names": ["shop.test"], "hosts": ["web2"]}}, "api")
    assert (api["upstreams"], api["tls"], api["socket"]) == (
        ["unix:/run/api/api.sock"],
        False,
        "/run/api/api.sock",
    )
    assert (shop["upstreams"], shop["tls"], shop["tls_name"], shop["socket"]) == (
        ["192.0.2.2:8443"],
        True,
        "shop.internal",
        "",
    )


def test_paths_of_an_entry_are_those_of_the_application() -> None:
    paths = {"private_paths": ["/admin"], "quiet_paths": ["/ping"], "auth_paths": ["/login"]}
    checks = {"health_path": "/healthz", "metrics_path": "/metrics"}
    _, shop = sites({"api": {}, "shop": {"path": "/shop/", **paths, **checks}}, "shop")
    assert shop["private_paths"] == ["/shop/metrics", "/shop/admin"]
    assert shop["quiet_paths"] == ["/shop/ping"]
    found = {(entry["match"], entry["path"]): entry for entry in shop["locations"]}
    assert found["^~", "/shop/login"]["limits"][0]["zone"] == "route_shop_auth"
    assert found["=", "/shop/healthz"]["quiet"]


def test_an_application_whose_routes_begin_with_the_path_writes_it_itself() -> None:
    entry = {"path": "/api/", "root_path": "", "quiet_paths": ["/api/ping"]}
    _, api = sites({"web": {}, "api": entry}, "api", nginx_quiet_paths=["/ping"])
    assert api["quiet_paths"] == ["/api/ping"]


def test_what_the_environment_sets_holds_for_all_sites_and_entries_go_over_it() -> None:
    flat = {
        "nginx_rate_limits": {
            "api": {"rate": "9r/s"},
            "search": {"path": "/search", "rate": "5r/s", "burst": 2},
        },
        "nginx_headers": {"X-Own": "1", "X-Frame-Options": None},
        "nginx_body_limit": "5m",
    }
    shop = {"names": ["shop.test"], "body_limit": "9m", "headers": {"X-Own": "2"}}
    shop |= {"rate_limits": {"search": None, "api": {"burst": 7}}}
    first, second = sites({"api": {}, "shop": shop}, "api", "shop", **flat)
    assert [(site["body_limit"], site["headers"]["X-Own"]) for site in (first, second)] == [
        ("5m", "1"),
        ("9m", "2"),
    ]
    assert "X-Frame-Options" not in first["headers"]
    assert [zone["name"] for zone in first["zones"]] == ["api", "write", "search"]
    assert [(zone["rate"], zone["burst"]) for zone in second["zones"]] == [("9r/s", 7), ("20r/s", 50)]


@pytest.mark.parametrize(
    "given",
    [
        ["https://a.test", "https://b.test"],
        '["https://a.test","https://b.test"]',
        "https://a.test, https://b.test",
    ],
)
def test_origins_of_the_settings_hold_for_the_edge(given: Any) -> None:
    settings = {"CORS_ORIGINS": given, "CORS_ALLOW_CREDENTIALS": "true"}
    (api,) = sites({"api": {"settings": settings}}, "api")
    assert (api["cors_origins"], api["cors_credentials"]) == (["https://a.test", "https://b.test"], True)


def test_the_included_service_limits_its_sign_ins() -> None:
    entry = {key: value for key, value in OWN.items() if key != "source"}
    for settings, path in (({}, "/api/v1/auth/"), ({"API_PREFIX": "/v2"}, "/v2/auth/")):
        found = service_sites({"api": entry | {"settings": settings}}, {"api": []}, ["api"], [], {}, {})
        assert found["api"]["auth_paths"] == [path]


def test_names_with_the_same_services_share_a_server() -> None:
    found = sites(
        {
            "api": {"names": ["a.test", "b.test"], "redirect_names": ["www.a.test"]},
            "shop": {"names": ["a.test"], "path": "/shop/", "redirect_names": ["shop.test"]},
            "chat": {"names": ["c.test"]},
        },
        "api",
    )
    servers = nginx_servers(found, [{"path": "/grafana/"}], ["b.test", "d.test"])
    assert [(server["names"], [site["name"] for site in server["sites"]]) for server in servers] == [
        (["a.test"], ["shop", "api"]),
        (["b.test"], ["api"]),
        (["c.test"], ["chat"]),
        (["d.test"], []),
    ]
    assert [len(server["consoles"]) for server in servers] == [0, 1, 0, 1]
    assert nginx_redirects(found) == {"a.test": ["www.a.test"], "a.test/shop": ["shop.test"]}


def test_files_are_on_the_hosts_of_the_service() -> None:
    static = [{"path": "web/dist/", "serve_at": "/", "immutable": "assets/"}]
    entry = {"path": "/shop/", "static": static, "state": ["plain", {"name": "media", "serve_at": "/media/"}]}
    _, shop = sites({"api": {}, "shop": entry}, "shop")
    assert [(found["path"], found["root"] + found["now"]) for found in shop["files"]] == [
        ("/shop/", "/srv/shop/current/code/web/dist"),
        ("/shop/media/", "/var/lib/shop/media"),
    ]
    assert shop["files"][0]["kept"] == ["/next/code/web/dist", "/previous/code/web/dist"]
    assert sites({"api": {}, "shop": entry})[1]["files"] == []
