"""host_probe tells what the operator has on a host from what a package leaves there."""

from __future__ import annotations

import hashlib
import pwd
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.modules import host_probe

# Empty data sets as Redis 7 and 8 write them, and one with a key.
EMPTY_RDB = b"REDIS0012\xfa\tredis-ver\x058.0.2\xfa\nredis-bits\xc0@\xff\x01\xfe\x02\xfb\x04\x05\x06\x07"
FULL_RDB = b"REDIS0012\xfa\tredis-ver\x058.0.2\xfe\x00\xfb\x01\x00\x00\x01a\x01b\xff12345678"


def write(root: Path, path: str, content: bytes = b"x") -> str:
    """Write a file of the host and return its digest."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_packages_and_their_configuration() -> None:
    listed = (
        "ii nginx-common\n /etc/nginx/nginx.conf 1234\n /etc/nginx/old 5678 obsolete\n\n"
        "rc apache2\n\nii zlib1g\n\n"
    )
    assert host_probe.packages(listed) == (["nginx-common", "zlib1g"], {"/etc/nginx/nginx.conf": "1234"})


def test_only_changed_configuration_is_the_operators(tmp_path: Path) -> None:
    names = [
        "/etc/nginx/nginx.conf",
        "/etc/redis/redis.conf",
        "/etc/default/prometheus-node-exporter",
        "/etc/default/prometheus",
        "/etc/logrotate.d/nginx",
    ]
    digests = {name: write(tmp_path, name) for name in names} | {"/etc/nginx/removed": "1"}
    assert host_probe.changed_files(digests, tmp_path) == {}
    for name in names:
        write(tmp_path, name, b"changed")
    assert host_probe.changed_files(digests, tmp_path) == {
        "nginx": ["/etc/nginx/nginx.conf"],
        "redis": ["/etc/redis/redis.conf"],
        "exporter": ["/etc/default/prometheus-node-exporter"],
        "prometheus": ["/etc/default/prometheus"],
    }


def test_the_distributions_site_is_not_the_operators(tmp_path: Path) -> None:
    write(tmp_path, "etc/nginx/sites-enabled/default")
    assert not any(host_probe.added_files(tmp_path).values())
    write(tmp_path, "etc/nginx/sites-enabled/shop")
    write(tmp_path, "etc/nginx/conf.d/shop.conf")
    write(tmp_path, "etc/prometheus/rules/shop.yml")
    assert host_probe.added_files(tmp_path) == {
        "grafana": [],
        "nginx": ["/etc/nginx/sites-enabled/shop", "/etc/nginx/conf.d/shop.conf"],
        "pgbackrest": [],
        "prometheus": ["/etc/prometheus/rules/shop.yml"],
    }


@pytest.mark.parametrize(
    ("made", "held"),
    [
        ([], False),
        (["var/lib/postgresql/17/main/base/5/1259"], False),  # The catalog of the database postgres.
        (["var/lib/postgresql/17/main/base/5/16385"], True),  # A table in it.
        (["var/lib/postgresql/17/main/base/16384/1259"], True),
        (["data/elsewhere/base/16384/1259"], False),
    ],
)
def test_clusters_of_postgres(tmp_path: Path, made: list[str], held: bool) -> None:
    write(tmp_path, "etc/postgresql/17/main/postgresql.conf")
    for path in made:
        write(tmp_path, path)
    assert host_probe.clusters(tmp_path) == (["the PostgreSQL cluster 17/main with data"] if held else [])


def test_a_cluster_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "etc/postgresql/15/main/postgresql.conf", b"data_directory = '/data/db'\t# moved\n")
    write(tmp_path, "data/db/base/16384/1259")
    assert host_probe.clusters(tmp_path) == ["the PostgreSQL cluster 15/main with data"]


@pytest.mark.parametrize(
    ("path", "content", "held"),
    [
        ("dump.rdb", EMPTY_RDB, False),
        ("dump.rdb", FULL_RDB, True),
        ("cache.rdb", FULL_RDB, False),  # Ours.
        ("appendonlydir/appendonly.aof.1.base.rdb", EMPTY_RDB, False),
        ("appendonlydir/appendonly.aof.1.incr.aof", b"*2\r\n", True),
        ("appendonlydir/appendonly.aof.1.incr.aof", b"", False),
    ],
)
def test_files_of_redis(tmp_path: Path, path: str, content: bytes, held: bool) -> None:
    write(tmp_path, f"var/lib/redis/{path}", content)
    assert host_probe.redis_data(tmp_path, port=9) == (["the data of redis-server"] if held else [])


@pytest.fixture
def redis() -> Iterator[tuple[int, list[bytes]]]:
    """A server that gives the answers of the list."""
    answers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answers[0])

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], answers


@pytest.mark.parametrize(
    ("answer", "held"),
    [(b"$14\r\n# Keyspace\r\n\r\n", False), (b"$40\r\n# Keyspace\r\ndb0:keys=1,expires=0\r\n\r\n", True)],
)
def test_keys_in_memory(tmp_path: Path, redis: tuple[int, list[bytes]], answer: bytes, held: bool) -> None:
    port, answers = redis
    answers.append(answer)
    assert bool(host_probe.redis_data(tmp_path, port)) is held


def test_what_has_the_services_name(tmp_path: Path) -> None:
    assert host_probe.service_files("no-such-name", tmp_path) == []
    (tmp_path / "srv/no-such-name").mkdir(parents=True)
    assert host_probe.service_files("no-such-name", tmp_path) == []
    write(tmp_path, "srv/no-such-name/index.html")
    write(tmp_path, "etc/systemd/system/no-such-name.service")
    assert host_probe.service_files("no-such-name", tmp_path) == [
        "/etc/systemd/system/no-such-name.service",
        "/srv/no-such-name",
    ]


def test_the_services_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pwd.struct_passwd(("api", "x", 999, 999, "", "/nonexistent", "/usr/sbin/nologin"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _: made)
    assert host_probe.service_files("api", tmp_path) == []
    login = pwd.struct_passwd(("api", "x", 1001, 1001, "", "/home/api", "/bin/bash"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _: login)
    assert host_probe.service_files("api", tmp_path) == ["the account api (/home/api, /bin/bash)"]


def test_authorized_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path,
        ".ssh/authorized_keys",
        b'# ssh-rsa AAAAold a\nssh-ed25519 AAAAone a@b\nfrom="10.0.0.1",no-pty ssh-rsa AAAAtwo\n\n',
    )
    accounts = [
        pwd.struct_passwd((name, "x", uid, uid, "", str(tmp_path / home), "/bin/sh"))
        for name, uid, home in (("root", 0, ""), ("ops", 1000, ""), ("other", 1001, "none"))
    ]
    monkeypatch.setattr(pwd, "getpwall", lambda: accounts)
    assert host_probe.authorized_keys() == {"ops": ["AAAAone", "AAAAtwo"]}


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("9:name=systemd:/\n0::/system.slice/nginx.service\n", "nginx.service"),
        ("0::/system.slice/system-postgresql.slice/postgresql@15-main.service", "postgresql@15-main.service"),
        ("1:name=systemd:/system.slice/docker-12.scope\n0::/\n", "docker-12.scope"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/dev.service/inner", "dev.service"),
        ("0::/init.scope\n", "init.scope"),
        ("0::/\n", ""),
    ],
)
def test_the_unit_of_a_process(cgroups: str, unit: str) -> None:
    assert host_probe.unit_of(cgroups) == unit


def test_listeners_have_the_unit_of_their_process_or_socket(tmp_path: Path) -> None:
    write(tmp_path, "7/cgroup", b"0::/system.slice/nginx.service\n")
    write(tmp_path, "1/cgroup", b"0::/init.scope\n")
    sockets = (
        'LISTEN 0 511 0.0.0.0:443 0.0.0.0:* users:(("nginx",pid=7,fd=5),("nginx",pid=6,fd=5))\n'
        'LISTEN 0 5 [::]:19531 [::]:* users:(("systemd",pid=1,fd=3))\n'
        "LISTEN 0 5 127.0.0.1:1443 0.0.0.0:*\n"
    )
    activated = "audit 1 audit.socket x.service\n127.0.0.1:19531 systemd-journal-remote.socket y\n"
    assert host_probe.listeners(sockets, activated, tmp_path) == [
        {"port": 443, "loopback": False, "program": "nginx", "unit": "nginx.service"},
        {"port": 443, "loopback": False, "program": "nginx", "unit": ""},
        {"port": 19531, "loopback": False, "program": "systemd", "unit": "systemd-journal-remote.socket"},
        {"port": 1443, "loopback": True, "program": "an unknown program", "unit": ""},
    ]


def test_free_space_of_a_missing_directory_is_its_parents(tmp_path: Path) -> None:
    assert host_probe.free_mb([str(tmp_path / "missing/too")]) == host_probe.free_mb([str(tmp_path)])
