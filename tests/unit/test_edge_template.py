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

DEFAULT_ZONES = {
    "no_site": "50r/s",
    "site_api": "50r/s",
    "preflights_api": "50r/s",
    "delete_patch_post_put_api_write": "20r/s",
}


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
    """Return the rate of each zone that counts by client network."""
    found = re.findall(r"limit_req_zone \S+ zone=([\w-]+):\d+m rate=(\S+);", configuration)
    return {name: rate for name, rate in found if not name.startswith("key")}


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


def test_each_key_has_the_limits_of_its_class() -> None:
    write = {"key_rate": "90r/m", "key_burst": 2}
    configuration = render(nginx_rate_limits={"write": write}, nginx_key_headers=["X-Shop-Key"])
    found = dict(re.findall(r"limit_req_zone (\S+ zone=key\S+):4m rate=(\S+);", configuration))
    assert found == {
        "$key_1 zone=key1_site_api": "50r/s",
        "$key_1_of_delete_patch_post_put zone=key1_delete_patch_post_put_api_write": "90r/m",
        "$key_1 zone=key1_route_api_auth": "1r/s",
    }
    site = locations(configuration)["/api/v1/auth/"]
    assert "limit_req zone=key1_route_api_auth burst=5 nodelay;" in site
    assert "limit_req zone=key1_delete_patch_post_put_api_write burst=2 nodelay;" in site
    assert "limit_req zone=delete_patch_post_put_api_write burst=50 nodelay;" in site
    assert 'map "$limit_exempt:$http_x_shop_key" $key_1 {' in configuration
    assert "$key_" not in render(nginx_key_headers=[])


def test_the_longest_path_of_a_class_with_methods_applies_beside_that_of_all_methods() -> None:
    imports = {"path": "/api/v1/auth/import", "methods": ["PUT"], "rate": "1r/m", "burst": 1}
    found = locations(render({"bulk_paths": ["/export"]}, nginx_rate_limits={"imports": imports}))
    zones = {
        path: {line.split()[1] for line in lines if "limit_req " in line and "=key" not in line}
        for path, lines in found.items()
    }
    write, preflights = "zone=delete_patch_post_put_api_write", "zone=preflights_api"
    assert zones["/export"] == {"zone=route_api_bulk", write, preflights}
    assert zones["/api/v1/auth/import"] == {"zone=route_api_auth", write, "zone=put_api_imports", preflights}
    assert "set $retry_after 60;" in found["/api/v1/auth/import"]


def test_a_service_has_limits_of_its_own_and_may_only_count() -> None:
    shop = {"names": ["shop.test"], "upstreams": ["unix:/run/shop/shop.sock"], "connections_per_client": 7}
    sites = {"api": API, "shop": shop | {"rate_limit_dry_run": True}}
    configuration = render(nginx_sites=sites)
    for directive in ("limit_req_dry_run on;", "limit_conn_dry_run on;", "limit_conn connections_shop 7;"):
        assert configuration.count(directive) == 1
    assert "limit_conn connections_api 50;" in configuration
    assert render(nginx_rate_limit_dry_run=True).count("limit_req_dry_run on;") == 1


def test_exempt_networks_count_in_no_zone() -> None:
    configuration = render(nginx_rate_limit_exempt=["10.1.2.0/24", "fd00::/64"])
    assert re.search(r"geo \$limit_exempt {\s+default 0;\s+10.1.2.0/24 1;\s+fd00::/64 1;", configuration)
    keys = re.findall(r"limit_(?:req|conn)_zone (\S+)", configuration)
    assert {key for key in keys if not key.startswith("$key_")} == {
        "$client_network",
        "$client_of_route",
        "$client_of_delete_patch_post_put",
        "$preflight",
    }


def test_every_refusal_of_nginx_is_a_problem() -> None:
    """The codes that Nginx itself answers, also those of requests that it cannot parse."""
    codes = {400, 401, 403, 404, 405, 408, 411, 412, 413, 414, 416, 421, 429, 494, 495, 496, 497}
    codes |= {500, 501, 502, 503, 504, 505}
    configuration = render()
    servers = re.split(r"^    server {$", configuration, flags=re.MULTILINE)[1:]
    for server in (text for text in servers if "stub_status" not in text):
        found = re.findall(r"error_page ([\d ]+?)(?: =\d+)? (?:@problem|/etc/nginx/problem);", server)
        assert codes == {int(code) for text in found for code in text.split()}


def test_http2_and_http3_are_for_tls_only() -> None:
    """On a port without TLS, HTTP/2 would pass the checks of HTTP/1.1."""
    configuration = render(nginx_http3=True)
    for server in re.split(r"^    server {$", configuration, flags=re.MULTILINE)[1:]:
        assert ("http2 on;" in server) is ("listen 443 ssl" in server) is ("listen 443 quic" in server)
    assert "http2 on;" not in configuration.partition("server {")[0]
    assert configuration.count("listen 443 quic reuseport default_server;") == 1
    assert "quic" not in render()
