"""Limits of the edge."""

import re
import time
import uuid
from base64 import b64encode
from collections import Counter

import pytest
from testinfra.host import Host

from tests.edge import Site, assert_headers, log_lines, statuses_from


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


READY = "/prometheus/-/ready"


def basic(account: str, word: str = "verify") -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{account}:{word}'.encode()).decode()}"}


@pytest.mark.on("edge", "complete", "monitoring")
def test_guesses_are_limited_by_client_and_by_account(host: Host, site: Site) -> None:
    signed_in = site.request(READY, headers=basic("guessed"))
    assert signed_in.status == 200
    cookie = signed_in.headers["Set-Cookie"].partition(";")[0]
    # Each guess comes from another client.
    begin = time.monotonic()
    with host.sudo():
        guesses = Counter(
            statuses_from(host, site, f"127.0.1.{number}", READY, 1, basic("guessed", f"guess{number}"))[0]
            for number in range(1, 16)
        )
    assert guesses.keys() == {401, 429}
    assert guesses[401] <= 4 + (time.monotonic() - begin) / 12
    refused = site.request(READY, headers=basic("guessed"))
    assert refused.status == 429
    assert int(refused.headers["Retry-After"]) == 12
    refused.assert_problem()
    # Those who have signed in go on, with all files of a page.
    pages = {site.request(READY, headers={"Cookie": cookie, **basic("guessed")}).status for _ in range(40)}
    assert pages == {200}
    # A cookie without the password opens nothing, and a forged one lifts no limit.
    assert site.request(READY, headers={"Cookie": cookie}).status == 401
    assert site.request(READY, headers={"Cookie": f"{cookie}x", **basic("guessed")}).status == 429
    # A client may try one account after the other, once a second.
    begin = time.monotonic()
    found = Counter(site.request(READY, headers=basic(f"guess{n}")).status for n in range(40))
    assert found.keys() == {401, 429}
    assert found[401] <= 6 + time.monotonic() - begin


@pytest.mark.on("edge", "complete", "monitoring")
def test_guesses_are_logged_with_the_client(host: Host, site: Site) -> None:
    path = f"/prometheus/{uuid.uuid4()}"
    with host.sudo():
        (status,) = statuses_from(host, site, "127.0.2.1", path, 1, basic("nobody-knows"))
    lines = log_lines(host, path.removeprefix("/prometheus"))
    assert status == 401
    assert {(line["client"], line["status"]) for line in lines} == {("127.0.2.1", 401)}
    assert len(lines) == 2, "the edge and the guard write a line each"
    with host.sudo():
        journal = host.check_output("journalctl -u fastmetal-passwords.service -n 50 -o cat")
    assert 'user "nobody-knows" was not found' in journal
    assert "client: 127.0.2.1" in journal


@pytest.mark.on("edge", "complete", "monitoring")
def test_the_nginx_of_the_site_compares_no_password(host: Host, site: Site) -> None:
    """A stopped comparison refuses operators, and delays no other client."""
    with host.sudo():
        host.check_output("systemctl kill --signal=STOP fastmetal-passwords.service")
        try:
            with site.connect() as waiting:
                token = basic("verify")["Authorization"]
                head = f"GET {READY} HTTP/1.1\r\nHost: {site.name}\r\nAuthorization: {token}\r\n\r\n"
                waiting.sendall(head.encode())
                begin = time.monotonic()
                assert {site.request("/no/such/page").status for _ in range(10)} == {404}
                assert time.monotonic() - begin < 5
        finally:
            host.check_output("systemctl kill --signal=CONT fastmetal-passwords.service")
        configuration = host.file("/etc/nginx/nginx.conf").content_string
    assert "auth_basic" not in configuration


@pytest.mark.on("edge", "complete")
def test_the_sites_limit_applies_to_consoles(host: Host) -> None:
    with host.sudo():
        configuration = host.file("/etc/nginx/nginx.conf").content_string
    consoles = re.findall(r"location \^~ /(?:grafana|prometheus|alertmanager)/ {\n.*\n(.*)", configuration)
    assert consoles.count("            limit_req zone=site_api burst=500 nodelay;") == 3
