"""Limits of the edge."""

import re
import time
import uuid
from base64 import b64encode
from collections import Counter

import pytest
from testinfra.host import Host

from tests.edge import Site, assert_headers, log_lines


@pytest.mark.on("edge")
def test_rate_limit_responds_429(site: Site) -> None:
    (found,) = site.settings["__nginx_sites"]
    zone = min(found["zones"], key=lambda zone: zone["burst"])
    answers = [site.request(f"{zone['path']}{uuid.uuid4()}") for _ in range(zone["burst"] + 5)]
    refused = [answer for answer in answers if answer.status == 429]
    assert answers[0].status != 429
    assert refused
    assert int(refused[0].headers["Retry-After"]) >= 1
    refused[0].assert_problem()
    assert_headers(site, refused[0])


@pytest.mark.on("edge", "complete")
def test_connection_limit_responds_429(site: Site) -> None:
    """Requests with incomplete bodies stay in flight; one request over the limit is refused."""
    limit = site.settings["nginx_connections_per_client"]
    request = f"POST /no/such/page HTTP/1.1\r\nHost: {site.name}\r\nContent-Length: 5\r\n\r\n"
    context = site.context()
    open_requests = [site.connect(context=context) for _ in range(limit)]
    try:
        for connection in open_requests:
            connection.sendall(request.encode())
        time.sleep(0.5)
        answer = site.request("/no/such/page")
    finally:
        for connection in open_requests:
            connection.close()
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.on("edge", "complete")
def test_body_over_the_limit_responds_413(site: Site) -> None:
    number, unit = re.fullmatch(r"(\d+)([kmg]?)", site.settings["nginx_body_limit"]).groups()  # type: ignore[union-attr]
    limit = int(number) * 1024 ** " kmg".index(unit or " ")
    answer = site.request("/api/v1/products", "POST", {"Content-Length": str(limit + 1)})
    assert answer.status == 413
    answer.assert_problem()
    assert_headers(site, answer)


# ---- Passwords in front of Prometheus and Alertmanager ----


def basic(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'verify:{password}'.encode()).decode()}"}


@pytest.mark.on("edge", "complete", "monitoring")
def test_passwords_are_guessed_at_most_once_a_second(host: Host, site: Site) -> None:
    path = "/prometheus/-/ready"
    begin = time.monotonic()
    statuses = Counter(site.request(path, headers=basic(f"guess{n}")).status for n in range(40))
    assert set(statuses) == {401, 429}
    assert statuses[401] <= 6 + time.monotonic() - begin
    # One in a second is allowed.
    attempts = [site.request(path, headers=basic("verify")) for _ in range(8)]
    refused = next(answer for answer in attempts if answer.status == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    refused.assert_problem()
    time.sleep(1.5)
    signed_in = site.request(path, headers=basic("verify"))
    assert signed_in.status == 200
    cookie = signed_in.headers["Set-Cookie"].partition(";")[0]
    # A cookie without the password opens nothing, and a forged one lifts no limit.
    assert site.request(path, headers={"Cookie": cookie}).status == 401
    forged = {"Cookie": f"{cookie}x", **basic("verify")}
    assert 429 in {site.request(path, headers=forged).status for _ in range(8)}
    # Signed-in operators at the same address go on, with all files of a page.
    pages = [site.request(path, headers={"Cookie": cookie, **basic("verify")}).status for _ in range(40)]
    assert set(pages) == {200}
    clients = {line["client"] for line in log_lines(host, "/-/ready")}
    assert "127.0.0.1" not in clients


@pytest.mark.on("edge", "complete")
def test_the_sites_limit_applies_to_consoles(host: Host) -> None:
    with host.sudo():
        configuration = host.file("/etc/nginx/nginx.conf").content_string
    consoles = re.findall(r"location \^~ /(?:grafana|prometheus|alertmanager)/ {\n.*\n(.*)", configuration)
    assert consoles.count("            limit_req zone=site_api burst=500 nodelay;") == 3
