"""Maintenance mode of the edge starts and ends without a dropped request."""

import http.client
import json
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.on("edge", "complete")

Run = Callable[..., subprocess.CompletedProcess[str]]
PATH = "/api/v1/products"
MESSAGE = """Back at six, <b>"friends"</b>"""


@pytest.fixture
def connect(host: Host, variables: dict[str, Any]) -> Callable[[], http.client.HTTPSConnection]:
    """Return a function that opens a client's connection; its address is not in nginx_maintenance_allowed."""
    context = ssl.create_default_context(cadata=host.file("/etc/fastmetal/tls/ca.crt").content_string)
    name = variables["nginx_server_names"][0]
    return lambda: http.client.HTTPSConnection(name, timeout=10, context=context)


@pytest.fixture
def set_maintenance(host: Host, ansible: Run) -> Iterator[Callable[..., str]]:
    """Return a function that starts or ends maintenance on this edge and returns the play recap."""

    def run(word: str) -> str:
        arguments = json.dumps({"maintenance": word, "maintenance_message": MESSAGE})
        limit = ("--limit", host.backend.hostname)
        done = ansible("ansible-playbook", "playbooks/maintenance.yml", *limit, "-e", arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()[-2]

    yield run
    run("off")


@contextmanager
def requests(connect: Callable[[], http.client.HTTPSConnection], answers: Counter[str]) -> Iterator[None]:
    """Send requests on kept-alive and on fresh connections, and count each status and exception."""
    stop = threading.Event()

    def send(*, fresh: bool) -> None:
        connection = connect()
        while not stop.is_set():
            try:
                connection.request("GET", PATH)
                response = connection.getresponse()
                response.read()
                answers[str(response.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                answers[repr(error)] += 1
                connection.close()
            if fresh:
                connection.close()
            stop.wait(0.08)
        connection.close()

    threads = [threading.Thread(target=send, kwargs={"fresh": fresh}) for fresh in (False, False, True)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_start_and_end_drop_no_request(
    connect: Callable[[], http.client.HTTPSConnection], set_maintenance: Callable[..., str]
) -> None:
    answers: Counter[str] = Counter()
    with requests(connect, answers):
        assert "changed=1 " in set_maintenance("on")
        assert "changed=0 " in set_maintenance("on")
        assert "changed=1 " in set_maintenance("off")
        time.sleep(0.3)
    assert set(answers) == {"200", "503"}, answers


def test_clients_get_503_operators_pass_and_edge_yml_keeps_maintenance(
    host: Host,
    connect: Callable[[], http.client.HTTPSConnection],
    variables: dict[str, Any],
    set_maintenance: Callable[..., str],
    ansible: Run,
) -> None:
    set_maintenance("on")

    def request(path: str, method: str = "GET", accept: str = "*/*") -> tuple[http.client.HTTPResponse, str]:
        connection = connect()
        connection.request(method, path, headers={"Accept": accept})
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response, body

    headers = variables["__nginx_sites"][0]["headers"]
    for method in ("GET", "POST", "DELETE"):
        answer, body = request(PATH, method)
        assert answer.status == 503
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert (json.loads(body)["status"], json.loads(body)["detail"]) == (503, MESSAGE)
        assert int(answer.headers["Retry-After"]) > 0
        for name in (*headers, "X-Request-ID", "Strict-Transport-Security"):
            assert len(answer.headers.get_all(name) or []) == 1, name
    answer, body = request("/", accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (answer.status, answer.headers["Content-Type"]) == (503, "text/html; charset=utf-8")
    assert answer.headers["Content-Security-Policy"] == headers["Content-Security-Policy"]
    assert "Back at six, &lt;b&gt;" in body
    assert "<b>" not in body
    # The service stays alive but not ready, and private files stay private.
    assert request("/health/live")[0].status == 200
    assert request("/health/ready")[0].status == 503
    assert request("/etc/nginx/maintenance/api/on")[0].status == 404
    # Operators reach their tools, which ask for a password.
    assert request("/prometheus/")[0].status == 401
    assert request("/grafana/")[0].status != 503
    assert request("/grafana/../api/v1/products")[0].status == 503

    script = (
        "import ssl, urllib.request as r; c = ssl.create_default_context(cafile='/etc/fastmetal/tls/ca.crt');"
        f"print(r.urlopen('https://{variables['nginx_server_names'][0]}{PATH}', context=c).status)"
    )
    assert variables["nginx_maintenance_allowed"] == [variables["private_address"]]
    assert host.check_output("python3 -c %s", script) == "200"

    name = host.backend.hostname
    done = ansible("ansible-playbook", "playbooks/edge.yml", "playbooks/status.yml", "--limit", name)
    assert f"{name} keeps clients of api out since " in done.stdout
    assert MESSAGE in done.stdout
    assert "changed=0 " in done.stdout.splitlines()[-2]
    assert request(PATH)[0].status == 503


@pytest.mark.parametrize("words", [[], ["-e", "maintenance=perhaps"]])
def test_other_values_are_refused(host: Host, ansible: Run, words: list[str]) -> None:
    done = ansible("ansible-playbook", "playbooks/maintenance.yml", "--limit", host.backend.hostname, *words)
    assert done.returncode != 0
    assert "Say -e maintenance=on or -e maintenance=off" in done.stdout
    assert not host.file("/etc/nginx/maintenance/api/on").exists
