"""Private paths have no disguise."""

import subprocess
from collections.abc import Iterator

import pytest
from testinfra.host import Host

from tests.edge import Site, StubEdge, stub_edge
from tests.edge_disguises import disguises

INSIDE = [
    "/area%2fdetail",
    "/area//detail",
    "/area/./detail",
    "/area\\detail",
    "/area;x/detail",
    "/area/;x/detail",
]
INSIDE += ["/area%5cdetail", "/area%0a/detail", "/area/%0adetail", "/area/x/../detail", "/area/%64etail"]
NEIGHBOURS = [
    "/metricsx",
    "/metrics-of-mine",
    "/metrics.json",
    "/x/metrics",
    "/area",
    "/area/detailed",
    "/x?y=/metrics",
]
NEIGHBOURS += ["/x?text=two%0alines", "/caf%c3%a9", "/a%20b", "/x;y=1", "/100%25"]


@pytest.fixture(scope="module")
def edge(host: Host, site: Site) -> Iterator[StubEdge]:
    """An edge of an application that answers 200 to everything."""
    quiet = ["/area/", "/metr"]  # Longer locations, which the private paths must win against.
    with stub_edge(host, site, nginx_private_paths=["/area/detail/"], nginx_quiet_paths=quiet) as edge:
        yield edge


@pytest.mark.on("edge", "complete")
def test_no_disguise_of_a_private_path_reaches_an_application(edge: StubEdge) -> None:
    private = [
        path for private in ("/metrics", "/area/detail") for path in disguises(edge.site.name, private)
    ]
    for path in [*private, *(path.encode("latin-1") for path in INSIDE)]:
        answer = edge.site.send_path(path)
        assert answer.headers["X-Served-By"] is None, path
        assert answer.status in {400, 404, 421}, path
        answer.assert_problem()


@pytest.mark.on("edge", "complete")
def test_control_characters_pass_no_path(edge: StubEdge) -> None:
    for code in (*range(1, 0x20), 0x7F):
        for path in (f"/x%{code:02x}", f"/x%{code:02X}y?z", f"/%{code:02x}/x"):
            answer = edge.site.send_path(path.encode())
            assert (answer.status, answer.headers["X-Served-By"]) == (400, None), path
            answer.assert_problem()


@pytest.mark.on("edge", "complete")
def test_other_paths_reach_the_application_unchanged(edge: StubEdge) -> None:
    for path in NEIGHBOURS:
        answer = edge.site.send_path(path.encode())
        assert (answer.status, answer.body) == (200, path.encode())


@pytest.mark.on("edge", "complete")
def test_no_disguise_passes_over_http2(edge: StubEdge) -> None:
    site = edge.site
    options = ["--silent", "--insecure", "--http2", "--path-as-is", "--output", "/dev/null", "--globoff"]
    options += ["--resolve", f"{site.name}:{site.port}:{site.address}"]
    options += ["--write-out", "%{http_version} %{http_code}"]
    for path in ("/metrics", "/metrics%0a", "/x/..;/metrics", "/metrics;x"):
        url = f"https://{site.name}:{site.port}{path}"
        done = subprocess.run(["curl", *options, url], capture_output=True, text=True, check=True)
        assert done.stdout in {"2 404", "2 400"}, path


@pytest.mark.on("edge")
def test_the_services_private_paths_are_private(site: Site) -> None:
    for path in site.settings["__nginx_sites"][0]["private_paths"]:
        for disguise in (path, f"{path}%0a", f"{path}/", f"/{path}", f"{path};x"):
            answer = site.send_path(disguise.encode())
            assert answer.status in {400, 404}, disguise
            answer.assert_problem()
