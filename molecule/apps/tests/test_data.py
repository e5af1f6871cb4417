"""Databases, caches and queues of four services on one host, with the variables that their processes have."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import pytest

from tests.apps.host import Apps

DATABASES = ("notes", "board", "jobs")
LOOPBACK = {"127.0.0.1:5432", "127.0.0.1:6379", "127.0.0.1:6380"}


def database_url(apps: Apps, service: str) -> str:
    """Return the URL of a service's database, from whichever variables the service knows."""
    known = apps.environment(service)
    if "DATABASE_URL" in known:
        return known["DATABASE_URL"].replace("+asyncpg", "")
    user, password, host = (known[f"POSTGRES_{name}"] for name in ("USER", "PASSWORD", "SERVER"))
    return f"postgresql://{user}:{password}@{host}:{known['POSTGRES_PORT']}/{known['POSTGRES_DB']}"


def redis(apps: Apps, service: str, *words: str) -> str:
    """Send a command with a service's login to its cache or queue, and return the reply or the error."""
    known, number = apps.environment(service), 0
    if "REDIS_URL" in known:
        url = urlsplit(known["REDIS_URL"])
        login = {"user": url.username, "password": url.password, "port": url.port}
        number = int(url.path[1:])
    else:
        names = {"user": "USERNAME", "password": "PASSWORD", "port": "PORT"}
        login = {key: known[f"REDIS_QUEUE_{name}"] for key, name in names.items()}
    target = f"-h 127.0.0.1 -p {login['port']} -n {number} --user {login['user']}"
    command = " ".join(f"'{word}'" for word in words)
    return apps.ssh(f"REDISCLI_AUTH={login['password']} redis-cli --no-auth-warning {target} {command} 2>&1")


def test_servers_listen_on_loopback_only(apps: Apps) -> None:
    listeners = apps.ssh("ss --no-header --listening --numeric --tcp --processes").splitlines()
    ours = {line.split()[3] for line in listeners if '"postgres"' in line or '"redis-server"' in line}
    assert ours == LOOPBACK


@pytest.mark.parametrize("service", DATABASES)
def test_a_service_reaches_its_own_database_over_loopback(apps: Apps, service: str) -> None:
    url = database_url(apps, service)
    where = apps.ssh(
        f"psql '{url}' --tuples-only --no-align --command 'SELECT current_user, inet_server_addr()'"
    )
    assert where == f"{service}|127.0.0.1"
    for other in DATABASES:
        if other != service:
            wrong = f"{url.rpartition('/')[0]}/{other}"
            assert "no pg_hba.conf entry" in apps.ssh(f"psql '{wrong}' --command 'SELECT 1' 2>&1 || true")


def test_services_share_the_connections_of_the_server(apps: Apps) -> None:
    roles = "SELECT json_object_agg(rolname, rolconnlimit) FROM pg_roles WHERE rolconnlimit > 5"
    limits = json.loads(apps.ssh(f'runuser -u postgres -- psql --tuples-only --command "{roles}"'))
    available = (
        int(apps.ssh("runuser -u postgres -- psql --tuples-only --command 'SHOW max_connections'")) - 13
    )
    assert {name: limits[name] for name in DATABASES} == dict.fromkeys(DATABASES, available // 3)


def test_a_cache_without_a_prefix_takes_any_key_in_its_own_database(apps: Apps) -> None:
    assert redis(apps, "chat", "SET", "any key", "1", "EX", "60") == "OK"
    assert redis(apps, "chat", "KEYS", "any*") == "any key"
    assert "redis_version" in redis(apps, "chat", "INFO", "server")
    assert redis(apps, "chat", "SELECT", "5").startswith("NOPERM")
    assert redis(apps, "chat", "PUBLISH", "room:probe", "1").isdigit()
    assert redis(apps, "chat", "PUBLISH", "other", "1").startswith("NOPERM")


def test_a_queue_writes_to_disk_and_never_evicts(apps: Apps) -> None:
    """A client that knows no database numbers, as that of `jobs`, works in database 0."""
    assert redis(apps, "jobs", "RPUSH", "probe", "1") == "1"
    memory = redis(apps, "jobs", "INFO", "memory").splitlines()
    assert "maxmemory_policy:noeviction" in memory
    assert "aof_enabled:1" in redis(apps, "jobs", "INFO", "persistence").splitlines()
    assert redis(apps, "jobs", "CLIENT", "LIST").count("user=jobs") >= 1
    assert redis(apps, "jobs", "LPOP", "probe") == "1"


def test_passwords_are_in_no_file_that_others_can_read(apps: Apps) -> None:
    password = urlsplit(database_url(apps, "notes")).password
    found = apps.ssh(
        f"grep -rlF {password} /etc /run/systemd/system /srv /var/lib/systemd 2>/dev/null || true"
    )
    modes = apps.ssh(f"stat --format '%a %n' {found.replace(chr(10), ' ')}").splitlines() if found else []
    assert [line for line in modes if line.split()[0][-2:] != "00"] == []
