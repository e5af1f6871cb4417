"""A client of an edge, and a second edge beside the host's own, with stub applications behind it."""

from __future__ import annotations

import http.client
import json
import shlex
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from testinfra.host import Host

from tests.lab import ROOT
from tests.roles import Role


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def assert_problem(self) -> None:
        assert self.headers["Content-Type"] == "application/problem+json", self
        assert json.loads(self.body)["status"] == self.status


@dataclass
class Site:
    """A client of the public site that trusts only the environment's CA."""

    address: str
    name: str
    ca: str
    settings: dict[str, Any] = field(repr=False)
    port: int = 443
    plain_port: int = 80

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.ca)

    def connect(self, *, port: int | None = None, context: ssl.SSLContext | None = None) -> socket.socket:
        plain = socket.create_connection((self.address, port or self.port), timeout=15)
        if port == self.plain_port:
            return plain
        return (context or self.context()).wrap_socket(plain, server_hostname=self.name)

    def request(
        self,
        path: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        *,
        port: int | None = None,
        host: str | None = None,
        body: str | bytes | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection(self.name)
        connection.sock = self.connect(port=port)
        connection.request(method, path, body, {"Host": host or self.name, **(headers or {})})
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        return answer

    def send(self, request: bytes, *, port: int | None = None) -> Answer:
        """Send bytes that may be an invalid request, and return the first answer."""
        with self.connect(port=port) as connection:
            connection.sendall(request)
            return self.receive(connection)

    @staticmethod
    def receive(connection: socket.socket) -> Answer:
        """Return the next answer of a connection."""
        response = http.client.HTTPResponse(connection)
        response.begin()
        return Answer(response.status, response.headers, response.read())

    def send_path(self, path: bytes, headers: bytes = b"") -> Answer:
        """Send a GET for a path exactly as given."""
        head = b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n%b\r\n"
        return self.send(head % (path, self.name.encode(), headers))


@lru_cache
def read(host: Host, path: str) -> str:
    """Return the content of a file that never changes."""
    with host.sudo():
        return str(host.file(path).content_string)


def log_lines(host: Host, text: str, file: str = "/var/log/nginx/access.log") -> list[dict[str, Any]]:
    """Return the access log's lines that contain a text; wait until nginx has flushed its buffer."""
    time.sleep(1.5)
    with host.sudo():
        found = host.run(f"grep -ahF {shlex.quote(text)} {file}").stdout
    return [json.loads(line) for line in found.splitlines()]


CLIENT = """
import http.client, json, ssl, sys
source, target, port, path, number, headers = sys.argv[1:]
for _ in range(int(number)):
    client = http.client.HTTPSConnection(
        target, port, source_address=(source, 0), context=ssl._create_unverified_context()
    )
    client.request("GET", path, headers=json.loads(headers))
    print(client.getresponse().status)
"""


def statuses_from(
    host: Host, site: Site, address: str, path: str, number: int, headers: dict[str, str] | None = None
) -> list[int]:
    """Return the statuses that a client on the host gets, which has another address than the control node."""
    target = "127.0.0.1" if address.startswith("127.") else site.address
    fields = json.dumps({"Host": site.name, **(headers or {})})
    words = ["python3", "-c", CLIENT, address, target, str(site.port), path, str(number), fields]
    return [int(status) for status in host.check_output(shlex.join(words)).split()]


def assert_headers(site: Site, answer: Answer, *, tls: bool = True) -> None:
    """Assert that the headers of every response are there once."""
    for name in site.settings["__nginx_own_headers"]:
        assert len(answer.headers.get_all(name) or []) == 1, f"{name} on a {answer.status}"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Strict-Transport-Security"] == (site.settings["nginx_hsts"] if tls else None)
    assert len(answer.headers.get_all("X-Request-ID") or []) == 1


@contextmanager
def unreachable_application(host: Host, settings: dict[str, Any]) -> Iterator[None]:
    """Hide the application's socket, so that new connections fail at once without a stop of the application.

    The reload closes the connections that nginx keeps open.
    """
    (upstream,) = settings["nginx_sites"]["api"]["upstreams"]
    path = shlex.quote(upstream.removeprefix("unix:"))
    with host.sudo():
        host.check_output(f"mv {path} {path}.hidden && systemctl reload nginx.service")
    try:
        time.sleep(1)
        yield
    finally:
        with host.sudo():
            host.check_output(f"mv {path}.hidden {path}")


class StubEdge:
    """The role's configuration on ports of its own, in front of stub applications on this host.

    What the applications do is in tests/edge_stub.py.
    """

    directory = "/run/stub-edge"

    def __init__(
        self,
        host: Host,
        site: Site,
        names: tuple[str, ...],
        variables: dict[str, Any],
        api: dict[str, Any] | None = None,
        others: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """Take the role's variables, changes of the site api, which has all applications, and other sites."""
        self.host = host
        self.sockets = [f"unix:{self.directory}/{name}.sock" for name in names]
        self.site = replace(site, port=18443, plain_port=18080)
        self.names = names
        self.variables = {
            "ansible_facts": {"distribution_release": host.system_info.codename},
            "nginx_sites": {
                "api": {"names": [site.name], "upstreams": self.sockets, **(api or {})},
                **(others or {}),
            },
            "nginx_status_listen": "",
            "nginx_base_rate_limits": {"api": {"path": "/", "rate": "1000r/s", "burst": 1000}},
            "__nginx_cache": f"{self.directory}/cache",
            "__nginx_maintenance": f"{self.directory}/maintenance",
            **variables,
        }

    def configuration(self) -> str:
        text = Role("nginx", **self.variables).render("nginx.conf.j2")
        for old, new in {
            "listen 80": "listen 18080",
            "listen [::]:80": "listen [::]:18080",
            "listen 443": "listen 18443",
            "listen [::]:443": "listen [::]:18443",
            "/run/nginx/nginx.pid": f"{self.directory}/nginx.pid",
            "/var/log/nginx": self.directory,
        }.items():
            text = text.replace(old, new)
        return text

    def write(self, name: str, content: str) -> None:
        encoded = b64encode(content.encode()).decode()
        self.host.check_output(f"echo {encoded} | base64 -d > {self.directory}/{name}")

    def start_application(self, name: str) -> None:
        program = shlex.join(["python3", f"{self.directory}/stub.py", f"{self.directory}/{name}.sock", name])
        self.host.check_output(f"systemd-run --quiet --collect --unit=stub-{name} {program}")
        self.host.check_output(
            f"timeout 10 sh -c 'until [ -S {self.directory}/{name}.sock ]; do sleep 0.05; done'"
        )

    def stop_application(self, name: str) -> None:
        self.host.check_output(f"systemctl stop stub-{name}; rm -f {self.directory}/{name}.sock")

    def start(self) -> None:
        self.host.check_output(f"rm -rf {self.directory}; mkdir {self.directory}")
        self.write("nginx.conf", self.configuration())
        self.write("stub.py", (ROOT / "tests/edge_stub.py").read_text())
        for name in self.names:
            self.start_application(name)
        command = f"nginx -e stderr -c {self.directory}/nginx.conf -g 'daemon off;'"
        self.host.check_output(f"nginx -e stderr -t -q -c {self.directory}/nginx.conf")
        self.host.check_output(f"systemd-run --quiet --collect --unit=stub-edge {command}")
        port = self.site.port
        self.host.check_output(f"timeout 10 sh -c 'until ss -Hltn | grep -q :{port}; do sleep 0.05; done'")

    def stop(self) -> None:
        units = " ".join(["stub-edge", *(f"stub-{name}" for name in self.names)])
        self.host.check_output(f"systemctl stop {units}; rm -rf {self.directory}")


@contextmanager
def stub_edge(
    host: Host,
    site: Site,
    *names: str,
    api: dict[str, Any] | None = None,
    others: dict[str, dict[str, Any]] | None = None,
    **variables: Any,
) -> Iterator[StubEdge]:
    """Run a second edge with these variables of the role, sites and one stub application per name."""
    edge = StubEdge(host, site, names or ("one",), variables, api, others)
    with host.sudo():
        edge.start()
        try:
            yield edge
        finally:
            edge.stop()
