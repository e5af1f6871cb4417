"""A service with two database endpoints, a standby and its primary."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import make_url

from app.settings import Settings
from tests.app.conftest import PSQL, SERVERS, seeing_all
from tests.app.test_interruptions import open_database

PORT = 5433
HOME = "/var/lib/postgresql/standby"
START = f"""set -e
version=$(ls /etc/postgresql)
etc=/etc/postgresql/$version/main
cp --preserve $etc/pg_hba.conf $etc/pg_hba.conf.before
echo 'local replication postgres peer' >> $etc/pg_hba.conf
{PSQL} 'SELECT pg_reload_conf()'
runuser -u postgres -- pg_basebackup --pgdata={HOME} --write-recovery-conf --checkpoint=fast
systemd-run --quiet --unit=standby --uid=postgres --property=Type=notify --property=KillSignal=SIGINT \\
  /usr/lib/postgresql/$version/bin/postgres -D {HOME} -c config_file=$etc/postgresql.conf \\
  -c data_directory={HOME} -c port={PORT} -c external_pid_file=
"""
STOP = f"""
systemctl stop standby
rm -rf {HOME}
cd /etc/postgresql/*/main && mv pg_hba.conf.before pg_hba.conf
{PSQL} 'SELECT pg_reload_conf()'
"""


@pytest.fixture(scope="module", autouse=True)
def _standby() -> Iterator[None]:
    try:
        SERVERS.ssh("data", START)
        yield
    finally:
        SERVERS.ssh("data", STOP)


def url_of(settings: Settings, *ports: int | None) -> str:
    """Return the database URL with an endpoint per port; None is the primary's port."""
    parts = urlsplit(settings.database_url)
    endpoints = ",".join(f"{parts.hostname}:{port or parts.port or 5432}" for port in ports)
    return f"postgresql://{parts.username or parts.path.strip('/')}@{endpoints}{parts.path}"


async def test_the_primary_is_found_among_the_endpoints(service: Callable[..., Settings]) -> None:
    async with open_database(service(DATABASE_URL=url_of(service(), PORT, None))) as database:
        rows = await database.fetch("test", "SELECT pg_is_in_recovery() AS standby")
        assert [row["standby"] for row in rows] == [False]


async def test_with_a_standby_only_the_service_is_not_ready(
    start: Callable[..., Any], service: Callable[..., Settings]
) -> None:
    client: httpx.AsyncClient = await start(DATABASE_URL=url_of(service(), PORT))
    assert (await client.get("/health/ready")).status_code == 503
    assert (await client.get("/api/v1/products")).status_code == 503


async def test_replication_lag_is_collected(
    start: Callable[..., Any], service: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.monitor.START_SECONDS", 0)
    monkeypatch.setattr("app.monitor.INTERVAL_SECONDS", 0.05)
    with seeing_all(make_url(service().database_url).username):
        client: httpx.AsyncClient = await start()
        deadline = time.monotonic() + 10
        # The standby may still replay the writes of earlier tests.
        expected = {"\ndatabase_standbys 1.0\n", "\ndatabase_replication_lag_seconds 0."}
        while missing := {line for line in expected if line not in (await client.get("/metrics")).text}:
            assert time.monotonic() < deadline, missing
            await asyncio.sleep(0.1)
