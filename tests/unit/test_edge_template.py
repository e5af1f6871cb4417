"""The configuration of an edge, rendered without a host."""

from __future__ import annotations

import re
from typing import Any

import pytest

from plugins.filter.nginx import nginx_private_pattern
from tests.roles import Role

SITE: dict[str, Any] = {"ansible_facts": {"distribution_release": "trixie"}}
API: dict[str, Any] = {
    "names": ["www.example.com"],
    "upstreams": ["unix:/run/api/api.sock"],
    "quiet_paths": ["/health/"],
    "auth_paths": ["/api/v1/auth/"],
}

DEFAULT_ZONES = {"site_api": "50r/s", "preflights_api": "50r/s"}


def render(api: dict[str, Any] | None = None, **variables: Any) -> str:
    """Return the nginx.conf for these variables, with the site api or changes of it."""
    sites = {"nginx_sites": {"api": API | (api or {})}}
    return Role("nginx", **SITE | sites | variables).render("nginx.conf.j2")


def locations(configuration: str) -> dict[str, list[str]]:
    """Return the directives of each prefix location, by path; a path with two locations fails."""
    found = re.findall(r"^( *)location \^~ (\S+) {\n(.*?)^\1}$", configuration, re.MULTILINE | re.DOTALL)
    found = [(path, body) for _, path, body in found]
    paths = [path for path, _ in found if path != "/etc/nginx/maintenance/"]
    assert len(set(paths)) == len(paths), paths
    return {path: [line.strip() for line in body.splitlines()] for path, body in found}


def zones(configuration: str) -> dict[str, str]:
    """Return the rate of each zone."""
    return dict(re.findall(r"limit_req_zone \S+ zone=([\w-]+):\d+m rate=(\S+);", configuration))


def test_without_ipv6_nginx_listens_on_ipv4_only() -> None:
    """A kernel without IPv6 refuses [::], and Nginx would not start."""
    loopback = {"device": "lo", "ipv4": {"address": "127.0.0.1"}}
    for facts, listens in (({}, True), ({"lo": loopback | {"ipv6": []}}, True), ({"lo": loopback}, False)):
        configuration = render(ansible_facts=SITE["ansible_facts"] | facts)
        assert ("[::]" in configuration) is listens
        assert "listen 443" in configuration


def test_a_new_zone_keeps_the_default_ones() -> None:
    search = {"path": "/api/v1/search", "rate": "5r/s", "burst": 20}
    configuration = render(nginx_rate_limits={"search": search})
    assert zones(configuration) == DEFAULT_ZONES | {"route_api_auth": "1r/s", "route_api_search": "5r/s"}
    found = locations(configuration)
    assert "limit_req zone=route_api_search burst=20 nodelay;" in found["/api/v1/search"]
    assert "limit_req zone=route_api_auth burst=5 nodelay;" in found["/api/v1/auth/"]


def test_a_zone_is_changed_by_field_and_removed_by_null() -> None:
    configuration = render(nginx_rate_limits={"api": {"burst": 7}, "auth": None})
    assert zones(configuration) == DEFAULT_ZONES
    assert "limit_req zone=site_api burst=7 nodelay;" in configuration
    assert "/api/v1/auth/" not in locations(configuration)


def test_a_path_has_a_limit_and_a_cache_in_one_location() -> None:
    configuration = render(
        nginx_rate_limits={"products": {"path": "/api/v1/products", "rate": "30r/m", "burst": 3}},
        nginx_cached_paths={"/api/v1/products": {"seconds": 2}},
    )
    directives = locations(configuration)["/api/v1/products"]
    assert "limit_req zone=route_api_products burst=3 nodelay;" in directives
    assert "set $retry_after 2;" in directives
    assert "proxy_cache_valid 200 2s;" in directives
    assert directives.count("proxy_pass http://service_api;") == 1


def test_a_longer_path_keeps_the_limit_and_the_cache_of_a_shorter_one() -> None:
    found = locations(
        render(
            nginx_rate_limits={"products": {"path": "/api/v1/", "rate": "5r/s", "burst": 3}},
            nginx_cached_paths={"/api/v1/products": {"seconds": 2}},
            nginx_quiet_paths=["/api/v1/products/ping"],
        )
    )
    assert "limit_req zone=route_api_products burst=3 nodelay;" in found["/api/v1/products"]
    ping = found["/api/v1/products/ping"]
    assert {
        "access_log off;",
        "limit_req zone=route_api_products burst=3 nodelay;",
        "proxy_cache_valid 200 2s;",
    } <= set(ping)
    assert "access_log off;" not in found["/api/v1/products"]
    assert "limit_req zone=route_api_auth burst=5 nodelay;" in found["/api/v1/auth/"]
    assert not any("limit_req" in line for line in found["/health/"])


def test_own_headers_and_paths_add_to_the_default_ones() -> None:
    configuration = render(
        nginx_headers={"Permissions-Policy": "camera=()", "X-Frame-Options": None},
        nginx_private_paths=["/admin"],
        nginx_quiet_paths=["/ping"],
    )
    assert "add_header Permissions-Policy " in configuration
    assert "add_header X-Content-Type-Options " in configuration
    assert "X-Frame-Options" not in configuration
    assert {"/ping", "/health/"} <= set(locations(configuration))
    for path in ("/admin", "/metrics"):
        assert nginx_private_pattern([path], "api")[8:-25] in configuration


def test_a_path_with_a_slash_is_not_redirected_without_it() -> None:
    found = re.findall(r"location = (/\S+) {\n *(.*;)", render(nginx_quiet_paths=["/ping"]))
    assert ("/health", "access_log off;") in found
    assert ("/api/v1/auth", "set $retry_after 1;") in found
    own = [{"path": "= /health", "directives": "return 204;"}]
    assert render(nginx_locations=own).count("location = /health {") == 1


@pytest.mark.parametrize(
    ("private", "path", "matches"),
    [
        ("/metrics", "/metrics", True),
        ("/metrics", "/metrics/x", True),
        ("/metrics", "/metrics\n", True),
        ("/metrics", "//;x/METRICS;y", True),
        ("/metrics", "/metrics-of-mine", False),
        ("/metrics", "/x/metrics", False),
        ("/a.b/c/", "/a.b;x/c", True),
        ("/a.b/c/", "/a.b\\c", True),
        ("/a.b/c/", "/axb/c", False),
        ("/a%20b", "/a b", True),
    ],
)
def test_private_pattern(private: str, path: str, *, matches: bool) -> None:
    pattern = nginx_private_pattern(["/other", private], "shop")
    assert bool(re.search(pattern, f"shop {path}", re.IGNORECASE)) is matches
    assert not re.search(pattern, f"api {path}", re.IGNORECASE)


def test_the_limit_of_sign_ins_covers_the_auth_paths() -> None:
    found = locations(render({"auth_paths": ["/login", "/token"]}))
    for path in ("/login", "/token"):
        assert "limit_req zone=route_api_auth burst=5 nodelay;" in found[path]
    assert "/api/v1/auth/" not in found
    assert zones(render({"auth_paths": []})) == DEFAULT_ZONES
