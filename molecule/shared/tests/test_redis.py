"""Redis for its clients: authentication, network access, permissions and limits."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.on("redis")

SOCKET = "/run/redis-cache/redis-server.sock"
UNIT = "redis-server@cache.service"
# Starts a server with the limits of a file and a timeout of a second; prints how long it keeps a client.
IDLE = """
import os, socket, subprocess, tempfile, time
directory = tempfile.mkdtemp()
path = f"{directory}/socket"
kept = [line for line in open(os.environ["CONFIGURATION"]) if line.startswith(("maxclients", "user "))]
kept += ["port 0\\n", f"unixsocket {path}\\n", f"dir {directory}\\n", "timeout 1\\n"]
server = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
server.stdin.write("".join(kept).encode())
server.stdin.close()
while not os.path.exists(path):
    time.sleep(0.05)
link = socket.socket(socket.AF_UNIX)
link.settimeout(10)
link.connect(path)
begun = time.monotonic()
assert link.recv(1) == b""
print(time.monotonic() - begun)
server.terminate()
"""


@dataclass
class Cache:
    """The server on one host, with clients for it."""

    host: Host
    variables: dict[str, Any]

    def __post_init__(self) -> None:
        self.port: int = self.variables["redis_port"]
        self.addresses: list[str] = self.variables["redis_listen_addresses"]
        self.user: dict[str, Any] = self.variables["__redis_users"][0]
        self.key: str = self.user["keys"][0].replace("*", "fastmetal-probe")

    def run(self, *command: str, password: str | None = None, target: str = f"-s {SOCKET}") -> str:
        """Send a command as the first user, and return the reply or the error."""
        redis_cli = f"timeout 10 redis-cli --no-auth-warning --user %s {target}"
        answer = self.host.run(
            f"REDISCLI_AUTH=%s {redis_cli} {'%s ' * len(command)}",
            self.user["password"] if password is None else password,
            self.user["name"],
            *command,
        )
        return str(answer.stdout + answer.stderr).strip()

    def run_unauthenticated(self, *command: str) -> str:
        """Send a command without authentication, and return the reply or the error."""
        answer = self.host.run(f"redis-cli -s {SOCKET} {'%s ' * len(command)}", *command)
        return str(answer.stdout + answer.stderr).strip()


@pytest.fixture
def cache(host: Host, variables: dict[str, Any]) -> Cache:
    return Cache(host, variables)


@pytest.fixture
def listening(cache: Cache) -> str:
    """Return redis-cli's options for the TLS port."""
    return f"-h {cache.addresses[0]} -p {cache.port}"


def test_a_user_authenticates_with_the_right_password_only(cache: Cache) -> None:
    assert cache.run("PING") == "PONG"
    assert "WRONGPASS" in cache.run("PING", password="wrong")


def test_the_default_user_is_off(cache: Cache) -> None:
    assert cache.run_unauthenticated("PING").startswith("NOAUTH")
    assert cache.run_unauthenticated("AUTH", "default", "any").startswith("WRONGPASS")
    assert cache.run_unauthenticated("AUTH", "any").startswith("WRONGPASS")


def test_a_user_accesses_its_own_keys_and_channels_only(cache: Cache) -> None:
    assert cache.run("SET", cache.key, "1", "EX", "60") == "OK"
    assert cache.run("GET", cache.key) == "1"
    assert cache.run("DEL", cache.key) == "1"
    assert cache.run("SET", "another:key", "1").startswith("NOPERM")
    assert cache.run("GET", "another:key").startswith("NOPERM")
    assert cache.run("PUBLISH", "another:channel", "1").startswith("NOPERM")
    for channel in cache.user.get("channels", []):
        assert cache.run("PUBLISH", channel.replace("*", "probe"), "1") == "0"


def test_a_user_cannot_run_administrative_commands(cache: Cache) -> None:
    assert "commands" not in cache.user
    refused = ["FLUSHALL", "SHUTDOWN", "KEYS *", "CONFIG GET *", "ACL LIST", "REPLICAOF NO ONE", "SAVE"]
    refused += ["MODULE LIST", "MIGRATE 127.0.0.1 1 key 0 1"]
    for command in refused:
        assert cache.run(*command.split()).startswith("NOPERM"), command


def test_a_script_reaches_no_key_of_others(cache: Cache) -> None:
    assert cache.run("GET", "another:key").startswith("NOPERM")
    assert cache.run("EVAL", "return redis.call('GET', KEYS[1])", "1", "another:key").startswith("NOPERM")
    for call in ("'GET', 'another:key'", "'CONFIG', 'GET', '*'"):
        answer = cache.run("EVAL", f"return redis.call({call})", "0")
        assert re.match("ERR .*(can't (access|run)|permissions|not allowed)", answer), answer


def test_other_system_users_cannot_connect_to_the_socket(cache: Cache) -> None:
    answer = cache.host.run(f"runuser -u nobody -- redis-cli -s {SOCKET} PING")
    assert "Permission denied" in answer.stdout + answer.stderr


@pytest.mark.on("complete")
def test_the_eviction_policy_is_applied(cache: Cache) -> None:
    cache.run("SET", cache.key, "1", "EX", "60")
    # Redis has a key's access frequency under LFU policies only, and its idle time under the others.
    lfu = cache.variables["redis_maxmemory_policy"].endswith("-lfu")
    assert cache.run("OBJECT", "FREQ", cache.key).isdigit() == lfu
    assert cache.run("OBJECT", "IDLETIME", cache.key).isdigit() != lfu
    cache.run("DEL", cache.key)


@pytest.mark.on("complete")
def test_the_memory_limit_is_applied(cache: Cache) -> None:
    limit = cache.variables["redis_maxmemory_mb"]
    policy = cache.variables["redis_maxmemory_policy"]
    assert 0 < limit <= 256
    assert policy.startswith("allkeys-")
    # In several scripts, because Redis evicts keys between commands but not within a script.
    pieces = [(f"{cache.key}:{number}:", str(limit // 2)) for number in range(4)]
    fill = "for i = 1, ARGV[2] do redis.call('SET', ARGV[1] .. i, string.rep('x', 1048000), 'EX', 60) end"
    empty = "local n = 0 for i = 1, ARGV[2] do n = n + redis.call('UNLINK', ARGV[1] .. i) end return n"
    for piece in pieces:
        assert cache.run("EVAL", f"{fill} return 'filled'", "0", *piece) == "filled"
    kept = sum(int(cache.run("EVAL", empty, "0", *piece)) for piece in pieces)
    assert limit // 4 < kept <= limit


@pytest.mark.on("complete")
def test_data_survives_a_restart_only_with_persistence(cache: Cache) -> None:
    persistent = cache.variables["redis_persistence"] != "none"
    assert cache.run("SET", cache.key, "kept", "EX", "60") == "OK"
    cache.host.check_output(f"systemctl restart {UNIT}")
    assert cache.run("GET", cache.key) == ("kept" if persistent else "")


@pytest.mark.on("complete")
def test_a_redis_that_cannot_save_stops(cache: Cache) -> None:
    """Without the setting it ignores the signal, and the stop lasts until the unit's timeout."""
    configuration = "/etc/redis/redis-cache.conf"
    cache.host.check_output(f"cp -p {configuration} {configuration}.kept")
    try:
        cache.host.check_output(f"echo save 3600 1 >> {configuration} && systemctl restart {UNIT}")
        assert cache.run("SET", cache.key, "1", "EX", "60") == "OK"
        cache.host.check_output("chmod 550 /var/lib/redis")
        cache.host.check_output(f"timeout 20 systemctl restart {UNIT}")
        assert cache.run("GET", cache.key) == ""
    finally:
        cache.host.check_output(
            f"chmod 750 /var/lib/redis; mv {configuration}.kept {configuration}; systemctl restart {UNIT}"
        )


def test_passwords_are_stored_as_hashes(cache: Cache) -> None:
    for user in cache.variables["__redis_users"]:
        assert cache.host.run("grep -rqF -e %s /etc/redis /etc/systemd/system", user["password"]).rc == 1


@pytest.mark.on("complete")
def test_idle_clients_are_closed_and_their_number_is_bounded(cache: Cache) -> None:
    """Another server with the same file and the shortest timeout, as a test cannot wait for five minutes."""
    configuration = "/etc/redis/redis-cache.conf"
    limits = cache.host.check_output(f"grep -E '^(maxclients|timeout) ' {configuration}").splitlines()
    variables = cache.variables
    assert limits == [
        f"maxclients {variables['redis_max_clients']}",
        f"timeout {variables['redis_idle_timeout_seconds']}",
    ]
    assert f"maxclients:{variables['redis_max_clients']}" in cache.run("INFO", "clients")
    assert float(cache.host.check_output("CONFIGURATION=%s python3 -c %s", configuration, IDLE)) < 5


@pytest.mark.on("complete")
def test_the_stock_server_is_off(cache: Cache) -> None:
    stock = cache.host.service("redis-server")
    assert not stock.is_running
    assert not stock.is_enabled
    assert cache.host.service(UNIT).is_enabled


def test_it_listens_on_the_configured_addresses_only(cache: Cache) -> None:
    listeners = cache.host.check_output("ss --no-header --listening --numeric --tcp --processes")
    ours = [line.split()[3] for line in listeners.splitlines() if '"redis-server"' in line]
    found = {address.rpartition(":")[0].strip("[]") for address in ours}
    assert found == set(cache.addresses)


@pytest.mark.on("redis_tls")
def test_a_client_connects_over_tls(cache: Cache, listening: str) -> None:
    options = f"{listening} --tls --cacert {cache.variables['redis_tls_ca_certificate']}"
    assert cache.run("PING", target=options) == "PONG"
    assert "WRONGPASS" in cache.run("PING", password="wrong", target=options)


@pytest.mark.on("redis_tls")
def test_another_ca_does_not_verify_the_server(cache: Cache, listening: str) -> None:
    options = f"{listening} --tls --cacert /etc/ssl/certs/ca-certificates.crt"
    assert "certificate verify failed" in cache.run("PING", target=options)


@pytest.mark.on("redis_tls")
def test_plaintext_is_refused(cache: Cache, listening: str) -> None:
    answer = cache.run("PING", target=listening)
    assert "PONG" not in answer
    assert "Connection reset" in answer or "closed the connection" in answer or "I/O error" in answer


@pytest.mark.on("redis_tls")
def test_the_unit_allows_its_clients_addresses_only(cache: Cache) -> None:
    """Read the loaded unit's properties, because a lab host may not load the packet filter itself."""
    shown = cache.host.check_output(f"systemctl show {UNIT} --property=IPAddressAllow,IPAddressDeny")
    found = {name: set(value.split()) for name, _, value in (x.partition("=") for x in shown.splitlines())}
    clients = cache.variables["redis_client_addresses"]
    allowed = {f"{address}/32" for address in cache.addresses + clients} | {"127.0.0.0/8", "::1/128"}
    assert found["IPAddressAllow"] == (allowed if clients else set())
    assert found["IPAddressDeny"] == ({"0.0.0.0/0", "::/0"} if clients else set())
