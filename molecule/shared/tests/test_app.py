"""The deployed service through its socket, through the edge and through its manage command."""

import json
import os
import re
import shlex
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.on("app")

# Sends one request, or many while a command runs; runs on the host because the socket is local.
CLIENT = r"""
import http.client, json, socket, ssl, subprocess, sys, threading

request = json.load(sys.stdin)

def send():
    connection = http.client.HTTPConnection(request["name"])
    if request["tls"]:
        plain = socket.create_connection((request["address"], 443), timeout=30)
        context = ssl.create_default_context(cafile=request["tls"])
        connection.sock = context.wrap_socket(plain, server_hostname=request["name"])
    else:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(request["address"])
    connection.request(request["method"], request["path"], request["body"], request["headers"])
    response = connection.getresponse()
    kind, body = response.getheader("Content-Type"), response.read().decode()
    return {"status": response.status, "type": kind, "body": body}

if not request["during"]:
    print(json.dumps(send()))
    sys.exit()

answers, stop = [], threading.Event()

def keep_sending():
    while not stop.is_set():
        try:
            answers.append(send()["status"])
        except OSError as error:
            answers.append(repr(error))
        stop.wait(0.02)

threads = [threading.Thread(target=keep_sending) for _ in range(4)]
for thread in threads:
    thread.start()
try:
    stop.wait(1)
    subprocess.run(request["during"], shell=True, check=True)
    stop.wait(3)
finally:
    stop.set()
for thread in threads:
    thread.join()
print(json.dumps(answers))
"""

# Searches for each credential of the service in places that other users can read.
SEARCH = r"""
import pathlib, subprocess, sys

secrets = {path.name: path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()}
paths = [*pathlib.Path("/proc").glob("[0-9]*/environ"), *pathlib.Path("/proc").glob("[0-9]*/cmdline")]
for directory in sys.argv[2:]:
    files = (path for path in pathlib.Path(directory).rglob("*") if path.is_file())
    paths += [path for path in files if path.parent.name != "credentials"]
texts = {}
for command in (["journalctl", "--no-pager", "--output=cat"], ["systemctl", "show", "*"]):
    texts[command[0]] = subprocess.run(command, capture_output=True).stdout
for path in paths:
    try:
        texts[str(path)] = path.read_bytes()
    except OSError:
        continue
for name, secret in secrets.items():
    for source, text in texts.items():
        if secret in text:
            print(name, "in", source)
print("searched", len(secrets))
"""


@dataclass
class Answer:
    status: int
    type: str | None
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    """The service on one host, with clients for it."""

    host: Host
    variables: dict[str, Any]
    database: Host

    def __post_init__(self) -> None:
        self.name: str = self.variables["app_name"]
        self.socket = f"/run/{self.name}/{self.name}.sock"
        self.credentials = f"/etc/{self.name}/credentials"
        self.manage = f"/usr/local/sbin/{self.name}-manage"
        self.instance = self.host.check_output(f"basename $(readlink /srv/{self.name}/current)")
        self.release = self.instance.rpartition(".")[0]
        self.unit = f"{self.name}@{self.instance}.service"
        self.secrets = {**self.variables["app_base_secrets"], **self.variables["app_secrets"]}

    def credential_names(self) -> list[str]:
        """Return the names of the credentials on the host."""
        return sorted([*self.secrets, *self.migration_credentials()])

    def migration_credentials(self) -> list[str]:
        """Return the names of the credentials of hosts that migrate; no other host has the owner's."""
        if not self.variables["app_migrate"]:
            return []
        return ["database_owner_password", "migration-database"]

    def _client(self, **options: Any) -> Any:
        options = {
            "name": "localhost",
            "address": self.socket,
            "tls": "",
            "body": None,
            "during": "",
            **options,
        }
        text = json.dumps({"method": "GET", "path": "/", "headers": {}, **options})
        return json.loads(self.host.check_output("printf %%s %s | python3 -c %s", text, CLIENT))

    def send(self, path: str, method: str = "GET", token: str = "", data: Any = None, **where: str) -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if data is not None:
            headers["Content-Type"] = "application/json"
        body = None if data is None else json.dumps(data)
        return Answer(**self._client(path=path, method=method, headers=headers, body=body, **where))

    def send_during(self, command: str) -> list[int | str]:
        """Send requests on fresh connections while a command runs; return every status or exception."""
        answers: list[int | str] = self._client(path=self.variables["app_health_path"], during=command)
        return answers

    def token(self) -> str:
        token: str = self.host.check_output(f"{self.manage} token --subject verify")
        return token

    def show(self, property_name: str) -> str:
        value: str = self.host.check_output(f"systemctl show --value --property {property_name} {self.unit}")
        return value

    def rows(self, name: str) -> list[str]:
        query = f"SELECT name, price, stock FROM products WHERE name = '{name}'"
        command = f"runuser -u postgres -- psql --no-psqlrc -Atd {self.name} -c %s"
        rows: list[str] = self.database.check_output(command, query).splitlines()
        return rows


@pytest.fixture
def service(host: Host, variables: dict[str, Any], find_host: Callable[[str], Host]) -> Service:
    return Service(host, variables, database=find_host("postgres"))


@pytest.fixture
def product() -> dict[str, Any]:
    return {"name": f"verify {uuid.uuid4()}", "category": "verify", "price": "12.34", "stock": 5}


@pytest.fixture(params=["socket", pytest.param("edge", marks=pytest.mark.on("edge"))])
def route(request: pytest.FixtureRequest, service: Service) -> dict[str, str]:
    """Return the client's options for the service's socket, or for the edge."""
    if request.param == "socket":
        return {}
    names = [name for name in service.variables["nginx_server_names"] if "*" not in name]
    return {"name": names[0], "address": names[0], "tls": "/etc/fastmetal/tls/ca.crt"}


def test_a_created_product_is_stored_in_postgres(
    service: Service, product: dict[str, Any], route: dict[str, str]
) -> None:
    created = service.send("/api/v1/products", "POST", service.token(), product, **route)
    assert created.status == 201, created
    assert service.rows(product["name"]) == [f"{product['name']}|12.34|5"]
    path = f"/api/v1/products/{created.json['id']}"
    assert service.send(path, **route).json["price"] == "12.34"
    assert service.send(path, "DELETE", service.token(), **route).status == 204
    assert service.rows(product["name"]) == []


@pytest.mark.parametrize("forge", ["", "nonsense", "signature"])
def test_a_wrong_token_is_refused(service: Service, product: dict[str, Any], forge: str) -> None:
    token = service.token()[:-8] + "AAAAAAAA" if forge == "signature" else forge
    answer = service.send("/api/v1/products", "POST", token, product)
    assert answer.status == 401
    assert answer.type == "application/problem+json"


def test_secrets_are_not_readable_outside_the_credentials_directory(service: Service) -> None:
    directories = f"/etc/systemd /usr/local /run/systemd/transient /srv/{service.name}/current/"
    found = service.host.check_output(f"python3 -c %s {service.credentials} {directories}", SEARCH)
    assert found == f"searched {len(service.credential_names())}"


def test_only_root_reads_credentials(service: Service) -> None:
    own = f"/srv/{service.name}/instances/{service.instance}/credentials"
    for folder, names in ((service.credentials, service.credential_names()), (own, service.secrets)):
        files = service.host.check_output(f"stat --format '%U %a %n' {folder}/*").splitlines()
        assert files == [f"root 400 {folder}/{name}" for name in sorted(names)]
        for user in (service.name, "www-data"):
            assert service.host.run(f"runuser -u {user} -- ls {folder}").failed


def test_the_service_gets_no_credentials_of_the_manage_command(service: Service) -> None:
    given = service.host.check_output(f"ls /run/credentials/{service.unit}").split()
    assert sorted(given) == sorted(service.secrets)


def test_every_process_runs_as_the_service_user(service: Service) -> None:
    group = service.show("ControlGroup")
    users = service.host.check_output(f"ps -o user= -p $(paste -sd, /sys/fs/cgroup{group}/cgroup.procs)")
    workers = service.variables["app_workers"] or int(service.host.check_output("nproc"))
    assert len(users.split()) == workers + 1
    assert set(users.split()) == {service.name}


def test_the_service_has_a_private_network_only_if_configured(service: Service) -> None:
    enter = f"nsenter --net --target {service.show('MainPID')}"
    links = service.host.check_output(f"{enter} ip -brief link").splitlines()
    variables = service.variables
    addresses = variables["app_base_addresses"] + variables["app_allowed_addresses"]
    assert (len(links) == 1) == (not addresses)


@pytest.mark.on("complete")
def test_the_service_cannot_change_its_code(service: Service) -> None:
    command = f"runuser -u {service.name} -- find /srv/{service.name} /etc/{service.name} -writable ! -type l"
    assert service.host.run(command).stdout == ""


def test_the_current_release_is_running(service: Service) -> None:
    assert (
        json.loads(service.host.file(f"/srv/{service.name}/current/release.json").content)["id"]
        == service.release
    )
    units = service.host.check_output(
        f"systemctl list-units --plain --no-legend --state=active '{service.name}@*'"
    )
    assert [line.split()[0] for line in units.splitlines()] == [service.unit]
    program = service.host.check_output(f"readlink /proc/{service.show('MainPID')}/cwd")
    assert program == f"/srv/{service.name}/releases/{service.release}/code"


def test_process_titles_name_the_service_and_its_release(service: Service) -> None:
    group = service.show("ControlGroup")
    titles = service.host.check_output(f"ps -o args= -p $(paste -sd, /sys/fs/cgroup{group}/cgroup.procs)")
    expected = {f"gunicorn: {kind} [{service.name} {service.release}]" for kind in ("master", "worker")}
    assert {line.strip() for line in titles.splitlines()} == expected


def test_the_units_are_valid(service: Service) -> None:
    units = f"{service.name}.service {service.name}.socket {service.unit}"
    checked = service.host.run(f"systemd-analyze verify {units}")
    assert (checked.rc, checked.stderr) == (0, "")


def test_the_socket_backlog_is_as_configured(service: Service) -> None:
    listening = service.host.check_output(f"ss --no-header --listening --unix src {service.socket}").split()
    assert int(listening[3]) == service.variables["app_backlog"]


@pytest.mark.on("complete")
def test_the_listening_socket_is_nonblocking(service: Service) -> None:
    pid = service.host.check_output(f"systemctl show --value --property=MainPID {service.unit}")
    shown = service.host.check_output(f"ss --no-header --listening --unix --processes src {service.socket}")
    (descriptor,) = re.findall(rf"pid={pid},fd=(\d+)", shown)
    flags = service.host.check_output(f"cat /proc/{pid}/fdinfo/{descriptor}")
    assert int(re.findall(r"flags:\s+(\d+)", flags)[0], 8) & os.O_NONBLOCK


def test_workers_share_the_memory_of_imported_modules(service: Service) -> None:
    pid = service.host.check_output(f"systemctl show --value --property=MainPID {service.unit}")
    worker = service.host.check_output(f"pgrep --parent {pid} | head -1")
    text = service.host.check_output(f"cat /proc/{worker}/smaps_rollup")
    rss, pss = (int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[0]) for name in ("Rss", "Pss"))
    assert pss < 0.65 * rss


def test_only_the_web_server_connects_to_the_socket(service: Service) -> None:
    connect = f"python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"{service.socket}\")'"
    assert service.host.run(f"runuser -u {service.variables['app_socket_group']} -- {connect}").rc == 0
    assert "PermissionError" in service.host.run(f"runuser -u nobody -- {connect}").stderr


@pytest.mark.on("complete")
def test_the_manage_command_returns_the_exit_status(service: Service) -> None:
    assert service.host.run(f"{service.manage} check").rc == 0
    assert service.host.run(f"{service.manage} no-such-command").rc != 0
    missing = service.host.run(f"{service.manage} --release nonsense check")
    assert (missing.rc, missing.stderr.count("\n")) == (1, 1)


def test_a_switch_to_the_live_release_changes_nothing(service: Service) -> None:
    about = json.loads(service.host.check_output(f"{service.name}-release switch {service.release}"))
    assert about == {"changed": False, "instance": service.instance, "release": service.release}


# A request whose first half reaches the old instance, and whose second half follows after the switch.
SPLIT_REQUEST = """
import http.client, socket, sys, time
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.putrequest("POST", "/api/v1/products")
connection.putheader("Content-Type", "application/json")
connection.putheader("Content-Length", "2")
connection.endheaders(b"{")
time.sleep(6)
connection.send(b"}")
print(connection.getresponse().status)
"""


@pytest.mark.on("complete")
def test_a_switch_of_instances_drops_no_request(service: Service) -> None:
    start_request = shlex.join(["python3", "-c", SPLIT_REQUEST, service.socket])
    switch = f"{service.name}-release switch {service.release} --force > /run/switched"
    answers = service.send_during(f"{start_request} > /run/begun & sleep 1; {switch} && wait $!")
    assert set(answers) == {200}
    # No token was sent, so 401 shows that the old instance answered once it had the whole body.
    assert service.host.file("/run/begun").content_string.strip() == "401"
    switched = json.loads(service.host.file("/run/switched").content)
    assert switched["instance"] not in ("", service.instance)
    # The old instance waited for that request, less than graceful_timeout: it cut off no request.
    assert 2 < switched["stop_seconds"] < 20
    assert not service.host.file(f"/etc/systemd/system/{service.unit}").exists


@pytest.mark.on("complete")
def test_an_instance_that_does_not_become_ready_never_serves(service: Service) -> None:
    """Without its database the new instance fails its startup probe, and the old one keeps serving."""
    host, name = service.host, service.name
    host.check_output(f"cp -a /etc/{name}/{name}.env /run/kept.env")
    unreachable = f"postgresql:\\/\\/{name}@\\/nowhere?host=\\/tmp"
    host.check_output(f"sed -i 's/^DATABASE_URL=.*/DATABASE_URL=\"{unreachable}\"/' /etc/{name}/{name}.env")
    host.check_output(f"sed -i 's/^TimeoutStartSec=.*/TimeoutStartSec=6/' /etc/{name}/instance.service")
    try:
        answers = service.send_during(f"! {name}-release switch {service.release} 2> /run/said")
    finally:
        host.check_output(f"cp -a /run/kept.env /etc/{name}/{name}.env")
        host.check_output(
            f"sed -i 's/^TimeoutStartSec=.*/TimeoutStartSec={service.variables['app_start_timeout']}/'"
            f" /etc/{name}/instance.service"
        )
    assert set(answers) == {200}
    said = host.file("/run/said").content_string
    assert f"did not get ready: GET {service.variables['app_health_path']} answered 503." in said
    # The last lines of the journal are shown, not the first ones.
    lines = said.partition("Last lines of its journal:\n")[2].splitlines()
    assert len(lines) <= 15
    assert re.search(r"timed out|Failed with result", "\n".join(lines[-3:])), lines
    assert Service(host, service.variables, service.database).instance == service.instance
    assert service.show("ActiveState") == "active"


@pytest.mark.on("complete")
def test_a_refused_secret_does_not_reach_the_next_start(service: Service) -> None:
    """As after a run of app.yml that was refused: the files of the next instance are already there."""
    host, name, key = service.host, service.name, f"{service.credentials}/secret_key"
    host.check_output(f"cp -a {key} /run/kept-key && printf changeme-changeme-changeme-changeme > {key}")
    try:
        refused = host.run(f"{name}-release switch {service.release}")
        host.check_output(f"systemctl restart {name}.service")
        answer = service.send(service.variables["app_health_path"])
        token = service.token()
    finally:
        host.check_output(f"cp -a /run/kept-key {key} && rm /run/kept-key")
    assert refused.rc == 1
    assert "SECRET_KEY" in refused.stderr
    assert (service.show("ActiveState"), answer.status) == ("active", 200)
    # Operators' commands use the key that the service uses.
    assert service.send("/api/v1/products", "POST", token, {}).status != 401


@pytest.mark.on("complete")
def test_wrong_settings_end_an_instance_after_one_start(service: Service) -> None:
    """An instance like the live one, but with a refused setting; systemd would restart it after a second."""
    host, name, copy = service.host, service.name, f"{service.name}@wrong.service"
    home, units = f"/srv/{name}/instances", "/etc/systemd/system"
    wrong = "REQUEST_TIMEOUT=soon"
    host.check_output(f"cp -a {home}/{service.instance} {home}/wrong && echo {wrong} >> {home}/wrong/env")
    host.check_output(f"cp {units}/{service.unit} {units}/{copy} && systemctl daemon-reload")
    try:
        for _ in range(3):
            started = host.run(f"systemctl reset-failed {copy}; systemctl start {copy}")
            host.check_output("sleep 1.5")
            properties = "ActiveState,NRestarts,ExecMainStatus"
            shown = host.check_output(f"systemctl show --property={properties} {copy}")
            assert started.rc == 1
            assert set(shown.splitlines()) == {"ActiveState=failed", "NRestarts=0", "ExecMainStatus=4"}
    finally:
        host.check_output(f"systemctl stop {copy}; rm -r {home}/wrong {units}/{copy}")
        host.check_output(f"systemctl daemon-reload; systemctl reset-failed {copy} || true")


@pytest.mark.on("complete")
def test_an_unpromoted_canary_rolls_back(service: Service) -> None:
    host, name = service.host, service.name
    host.check_output(f"{name}-release switch {service.release} --force --promote-within 3")
    assert json.loads(host.check_output(f"{name}-release status"))["canary"]
    rolled_back = f"until {name}-release history | tail -1 | grep --quiet rolled_back; do sleep 0.5; done"
    answers = service.send_during(f"timeout 60 sh -c '{rolled_back}'")
    assert set(answers) == {200}
    status = json.loads(host.check_output(f"{name}-release status"))
    assert (status["canary"], status["instance"]) == (False, service.instance)
    last = json.loads(host.check_output(f"{name}-release history").splitlines()[-1])
    assert (last["result"], last["reason"]) == ("rolled_back", "not promoted within 3 s")


@pytest.mark.on("complete")
def test_the_lock_names_its_holder_and_can_be_broken(service: Service) -> None:
    def lock(run: str, *options: str) -> Any:
        metadata = json.dumps({"run": run, "by": "alice", "from": "desk", "action": "deploy"})
        return service.host.run(f"{service.name}-release lock --metadata '{metadata}' {' '.join(options)}")

    try:
        assert lock("one").rc == 0
        assert lock("one").rc == 0
        refused = lock("two")
        assert refused.rc == 1
        assert "alice on desk holds the lock since" in refused.stderr
        assert lock("two", "--break").rc == 0
        assert lock("three", "--seconds", "0").rc == 1
    finally:
        service.host.check_output(f"rm -f /run/{service.name}/deploy.lock")


def test_every_response_has_the_release_header(service: Service) -> None:
    command = f"curl --silent --head --unix-socket {service.socket} http://localhost/health/live"
    head = service.host.run(command).stdout or service.host.check_output(
        "python3 -c %s",
        "import http.client, socket; c = http.client.HTTPConnection('localhost');"
        f" c.sock = socket.socket(socket.AF_UNIX); c.sock.connect('{service.socket}');"
        " c.request('GET', '/health/live'); print(c.getresponse().headers)",
    )
    assert f"{service.variables['app_release_header'].lower()}: {service.release}" in head.lower()


@pytest.mark.on("complete")
def test_a_restart_refuses_no_connection_and_is_unready_first(service: Service) -> None:
    before = service.show("MainPID")
    answers = service.send_during(f"systemctl restart {service.name}.service")
    assert set(answers) == {200, 503}
    assert answers[-1] == 200
    assert service.show("MainPID") not in ("0", before)


@pytest.mark.on("complete")
def test_the_service_restarts_after_a_kill(service: Service) -> None:
    before = service.show("MainPID")
    answers = service.send_during(f"kill -9 {before}; sleep 3")
    # Requests in flight in the killed workers are lost; no connection is refused.
    assert answers[-1] == 200
    assert not [answer for answer in answers if "Refused" in str(answer) or "EAGAIN" in str(answer)]
    assert service.show("MainPID") not in ("0", before)


def test_the_current_release_starts_at_boot(service: Service) -> None:
    assert service.host.service(f"{service.name}.service").is_enabled
    service.host.check_output(f"systemctl stop {service.name}.socket {service.name}.service {service.unit}")
    service.host.check_output(f"systemctl start {service.name}.service")
    assert service.send(service.variables["app_health_path"]).status == 200
