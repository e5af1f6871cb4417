"""Redis as its clients meet it: who gets in, from where, and what they may touch there."""

from dataclasses import dataclass
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.on("redis")

SOCKET = "/run/redis-cache/redis-server.sock"
UNIT = "redis-server@cache.service"


@dataclass
class Cache:
    """The server on one host, and the ways to talk to it."""

    host: Host
    variables: dict[str, Any]

    def __post_init__(self) -> None:
        self.port: int = self.variables["redis_port"]
        self.addresses: list[str] = self.variables["redis_listen_addresses"]
        self.user: dict[str, Any] = self.variables["__redis_users"][0]
        self.key: str = self.user["keys"][0].replace("*", "fastmetal-probe")

    def say(self, *command: str, password: str | None = None, target: str = f"-s {SOCKET}") -> str:
        """Send one command as the first user, and give the answer or the refusal."""
        redis_cli = f"timeout 10 redis-cli --no-auth-warning --user %s {target}"
        answer = self.host.run(
            f"REDISCLI_AUTH=%s {redis_cli} {'%s ' * len(command)}",
            self.user["password"] if password is None else password,
            self.user["name"],
            *command,
        )
        return str(answer.stdout + answer.stderr).strip()

    def say_unnamed(self, *command: str) -> str:
        """Send one command without logging in."""
        answer = self.host.run(f"redis-cli -s {SOCKET} {'%s ' * len(command)}", *command)
        return str(answer.stdout + answer.stderr).strip()


@pytest.fixture
def cache(host: Host, variables: dict[str, Any]) -> Cache:
    return Cache(host, variables)


@pytest.fixture
def listening(cache: Cache) -> str:
    """The redis-cli options that reach the TLS port."""
    return f"-h {cache.addresses[0]} -p {cache.port}"


def test_a_user_gets_in_with_the_right_password_only(cache: Cache) -> None:
    assert cache.say("PING") == "PONG"
    assert "WRONGPASS" in cache.say("PING", password="wrong")


def test_the_default_user_is_off(cache: Cache) -> None:
    assert cache.say_unnamed("PING").startswith("NOAUTH")
    assert cache.say_unnamed("AUTH", "default", "any").startswith("WRONGPASS")
    assert cache.say_unnamed("AUTH", "any").startswith("WRONGPASS")


def test_a_user_touches_its_own_keys_and_channels_only(cache: Cache) -> None:
    assert cache.say("SET", cache.key, "1", "EX", "60") == "OK"
    assert cache.say("GET", cache.key) == "1"
    assert cache.say("DEL", cache.key) == "1"
    assert cache.say("SET", "another:key", "1").startswith("NOPERM")
    assert cache.say("GET", "another:key").startswith("NOPERM")
    assert cache.say("PUBLISH", "another:channel", "1").startswith("NOPERM")
    for channel in cache.user.get("channels", []):
        assert cache.say("PUBLISH", channel.replace("*", "probe"), "1") == "0"


def test_a_user_cannot_administer(cache: Cache) -> None:
    assert "commands" not in cache.user
    for command in ("FLUSHALL", "SHUTDOWN", "KEYS *", "CONFIG GET *", "ACL LIST", "REPLICAOF NO ONE"):
        assert cache.say(*command.split()).startswith("NOPERM"), command


def test_other_system_users_do_not_reach_the_socket(cache: Cache) -> None:
    answer = cache.host.run(f"runuser -u nobody -- redis-cli -s {SOCKET} PING")
    assert "Permission denied" in answer.stdout + answer.stderr


@pytest.mark.on("complete")
def test_the_eviction_policy_is_in_force(cache: Cache) -> None:
    cache.say("SET", cache.key, "1", "EX", "60")
    # Redis counts how often a key is used under an LFU policy only, and how long ago under the others.
    lfu = cache.variables["redis_maxmemory_policy"].endswith("-lfu")
    assert cache.say("OBJECT", "FREQ", cache.key).isdigit() == lfu
    assert cache.say("OBJECT", "IDLETIME", cache.key).isdigit() != lfu
    cache.say("DEL", cache.key)


@pytest.mark.on("complete")
def test_the_memory_limit_is_in_force(cache: Cache) -> None:
    limit = cache.variables["redis_maxmemory_mb"]
    policy = cache.variables["redis_maxmemory_policy"]
    assert 0 < limit <= 256
    assert policy.startswith("allkeys-")
    # In pieces, because room is made between commands and not within a script.
    pieces = [(f"{cache.key}:{number}:", str(limit // 2)) for number in range(4)]
    fill = "for i = 1, ARGV[2] do redis.call('SET', ARGV[1] .. i, string.rep('x', 1048000), 'EX', 60) end"
    empty = "local n = 0 for i = 1, ARGV[2] do n = n + redis.call('UNLINK', ARGV[1] .. i) end return n"
    for piece in pieces:
        assert cache.say("EVAL", f"{fill} return 'filled'", "0", *piece) == "filled"
    kept = sum(int(cache.say("EVAL", empty, "0", *piece)) for piece in pieces)
    assert limit // 4 < kept <= limit


@pytest.mark.on("complete")
def test_data_outlives_a_restart_only_if_it_was_asked_to(cache: Cache) -> None:
    persistent = cache.variables["redis_persistence"] != "none"
    assert cache.say("SET", cache.key, "kept", "EX", "60") == "OK"
    cache.host.check_output(f"systemctl restart {UNIT}")
    assert cache.say("GET", cache.key) == ("kept" if persistent else "")


def test_passwords_are_stored_as_hashes(cache: Cache) -> None:
    for user in cache.variables["__redis_users"]:
        assert cache.host.run("grep -rqF -e %s /etc/redis /etc/systemd/system", user["password"]).rc == 1


@pytest.mark.on("complete")
def test_the_stock_server_is_off(cache: Cache) -> None:
    stock = cache.host.service("redis-server")
    assert not stock.is_running
    assert not stock.is_enabled
    assert cache.host.service(UNIT).is_enabled


def test_it_listens_where_it_was_told_to_and_nowhere_else(cache: Cache) -> None:
    listeners = cache.host.check_output("ss --no-header --listening --numeric --tcp --processes")
    ours = [line.split()[3] for line in listeners.splitlines() if '"redis-server"' in line]
    found = {address.rpartition(":")[0].strip("[]") for address in ours}
    assert found == set(cache.addresses)


@pytest.mark.on("redis_tls")
def test_a_client_that_verifies_the_certificate_gets_in(cache: Cache, listening: str) -> None:
    tls = cache.variables["redis_tls_ca_certificate"].rpartition("/")[0]
    options = f"{listening} --tls --cacert {tls}/ca.crt --cert {tls}/host.crt --key {tls}/host.key"
    assert cache.say("PING", target=options) == "PONG"
    assert "WRONGPASS" in cache.say("PING", password="wrong", target=options)


@pytest.mark.on("redis_tls")
def test_another_authority_does_not_vouch_for_the_server(cache: Cache, listening: str) -> None:
    options = f"{listening} --tls --cacert /etc/ssl/certs/ca-certificates.crt"
    assert "certificate verify failed" in cache.say("PING", target=options)


@pytest.mark.on("redis_tls")
def test_plaintext_is_refused(cache: Cache, listening: str) -> None:
    answer = cache.say("PING", target=listening)
    assert "PONG" not in answer
    assert "Connection reset" in answer or "closed the connection" in answer or "I/O error" in answer


@pytest.mark.on("redis_tls")
def test_the_unit_lets_its_clients_in_and_nobody_else(cache: Cache) -> None:
    """As systemd knows it, without a restart; a lab host may not load the filter itself."""
    shown = cache.host.check_output(f"systemctl show {UNIT} --property=IPAddressAllow,IPAddressDeny")
    found = {name: set(value.split()) for name, _, value in (x.partition("=") for x in shown.splitlines())}
    clients = cache.variables["redis_client_addresses"]
    allowed = {f"{address}/32" for address in cache.addresses + clients} | {"127.0.0.0/8", "::1/128"}
    assert found["IPAddressAllow"] == (allowed if clients else set())
    assert found["IPAddressDeny"] == ({"0.0.0.0/0", "::/0"} if clients else set())
