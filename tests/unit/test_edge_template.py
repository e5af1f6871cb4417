"""The configuration of an edge, rendered without a host."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

from tests.lab import ROOT

ROLE = ROOT / "roles/nginx"
SITE = {
    "ansible_facts": {"distribution_release": "trixie"},
    "nginx_server_names": ["www.example.com"],
    "nginx_upstreams": ["unix:/run/api/api.sock"],
}


@pytest.fixture(scope="module")
def loader() -> DataLoader:
    """Return a loader that finds the role's templates and the collection's filters."""
    init_plugin_loader()
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    return loader


def templar(loader: DataLoader, **variables: Any) -> Templar:
    """Return a templar with the role's variables, these on top."""
    values: dict[str, Any] = {}
    for path in ("defaults/main.yml", "vars/main.yml"):
        values |= loader.load_from_file(str(ROLE / path), trusted_as_template=True)
    return Templar(loader, values | SITE | variables)


def render(loader: DataLoader, **variables: Any) -> str:
    """Return the nginx.conf for these variables."""
    path = ROLE / "templates/nginx.conf.j2"
    expression = trust_as_template(f"{{{{ lookup('ansible.builtin.template', '{path}') }}}}")
    return str(templar(loader, **variables).template(expression))


def locations(configuration: str) -> dict[str, list[str]]:
    """Return the directives of each prefix location, by path; a path with two locations fails."""
    found = re.findall(r"^ *location \^~ (\S+) {\n(.*?)^ *}$", configuration, re.MULTILINE | re.DOTALL)
    paths = [path for path, _ in found if path != "/etc/nginx/maintenance/"]
    assert len(set(paths)) == len(paths), paths
    return {path: [line.strip() for line in body.splitlines()] for path, body in found}


def zones(configuration: str) -> dict[str, str]:
    """Return the rate of each zone."""
    return dict(re.findall(r"limit_req_zone \S+ zone=(\w+):\d+m rate=(\S+);", configuration))


def refusals(loader: DataLoader, **variables: Any) -> list[str]:
    """Return the sentences with which the role refuses these variables."""
    from plugins.action.refuse import sentences

    hosts = templar(loader, **variables)
    return list(sentences(hosts.available_variables["__nginx_faults"], hosts))


def test_a_new_zone_keeps_the_default_ones(loader: DataLoader) -> None:
    search = {"path": "/api/v1/search", "rate": "5r/s", "burst": 20}
    configuration = render(loader, nginx_rate_limits={"search": search})
    assert zones(configuration) == {"api": "50r/s", "auth": "1r/s", "search": "5r/s"}
    found = locations(configuration)
    assert "limit_req zone=search burst=20 nodelay;" in found["/api/v1/search"]
    assert "limit_req zone=auth burst=5 nodelay;" in found["/api/v1/auth/"]


def test_a_zone_is_changed_by_field_and_removed_by_null(loader: DataLoader) -> None:
    configuration = render(loader, nginx_rate_limits={"api": {"burst": 7}, "auth": None})
    assert zones(configuration) == {"api": "50r/s"}
    assert "limit_req zone=api burst=7 nodelay;" in configuration
    assert "/api/v1/auth/" not in locations(configuration)


def test_a_path_has_a_limit_and_a_cache_in_one_location(loader: DataLoader) -> None:
    configuration = render(
        loader,
        nginx_rate_limits={"products": {"path": "/api/v1/products", "rate": "30r/m", "burst": 3}},
        nginx_cached_paths={"/api/v1/products": {"seconds": 2}},
    )
    directives = locations(configuration)["/api/v1/products"]
    assert "limit_req zone=products burst=3 nodelay;" in directives
    assert "set $retry_after 2;" in directives
    assert "proxy_cache_valid 200 2s;" in directives
    assert directives.count("proxy_pass http://application;") == 1


def test_a_longer_path_keeps_the_limit_and_the_cache_of_a_shorter_one(loader: DataLoader) -> None:
    found = locations(
        render(
            loader,
            nginx_rate_limits={"products": {"path": "/api/v1/", "rate": "5r/s", "burst": 3}},
            nginx_cached_paths={"/api/v1/products": {"seconds": 2}},
            nginx_quiet_paths=["/api/v1/products/ping"],
        )
    )
    assert "limit_req zone=products burst=3 nodelay;" in found["/api/v1/products"]
    ping = found["/api/v1/products/ping"]
    assert {
        "access_log off;",
        "limit_req zone=products burst=3 nodelay;",
        "proxy_cache_valid 200 2s;",
    } <= set(ping)
    assert "access_log off;" not in found["/api/v1/products"]
    assert "limit_req zone=auth burst=5 nodelay;" in found["/api/v1/auth/"]
    assert not any("limit_req" in line for line in found["/health/"])


def test_own_headers_and_paths_add_to_the_default_ones(loader: DataLoader) -> None:
    configuration = render(
        loader,
        nginx_headers={"Permissions-Policy": "camera=()", "X-Frame-Options": None},
        nginx_private_paths=["/admin"],
        nginx_quiet_paths=["/ping"],
    )
    assert "add_header Permissions-Policy " in configuration
    assert "add_header X-Content-Type-Options " in configuration
    assert "X-Frame-Options" not in configuration
    assert {"/admin/", "/metrics/", "/health/detail/", "/ping", "/health/"} <= set(locations(configuration))


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"nginx_rate_limits": {"search": {"path": "/search", "rate": "5r/s"}}},
            "nginx_rate_limits.search.burst is missing: set it to a whole number.",
        ),
        (
            {"nginx_rate_limits": {"api": {"brust": 5}}},
            "nginx_rate_limits.api.brust is unknown: write burst.",
        ),
        (
            {"nginx_rate_limits": {"api": {"rate": "5"}}},
            "Write each rate of nginx_rate_limits as 10r/s or 30r/m.",
        ),
        (
            {"nginx_rate_limits": {"second": {"path": "/", "rate": "5r/s", "burst": 5}}},
            "nginx_rate_limits has two zones for one path: merge them, or set one to null.",
        ),
        (
            {"nginx_rate_limits": {"connections": {"path": "/x", "rate": "5r/s", "burst": 5}}},
            "Name the zones of nginx_rate_limits in lower case letters, and none of them"
            " answers, application, connections, consoles, tls.",
        ),
        (
            {"nginx_cached_paths": {"/metrics": {"seconds": 2}}},
            "/metrics is in nginx_consoles or nginx_private_paths and also in nginx_rate_limits,"
            " nginx_cached_paths or nginx_quiet_paths: remove it from one of them.",
        ),
        (
            {"nginx_cached_paths": {"/x": {"seconds": 3601}}},
            "Start each path of nginx_cached_paths with a slash, name more than the root,"
            " and give 1 to 3600 seconds.",
        ),
    ],
)
def test_refuses_what_nginx_cannot_serve(
    loader: DataLoader, variables: dict[str, Any], sentence: str
) -> None:
    assert refusals(loader, **variables) == [sentence]


def test_accepts_the_defaults(loader: DataLoader) -> None:
    assert refusals(loader) == []
