"""Log lines are found by request ID on all hosts, and collected without loss."""

import http.client
import json
import re
import shlex
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.edge import Site, unreachable_application

Run = Callable[..., subprocess.CompletedProcess[str]]
Hosts = dict[str, Host]
PORT = 19532
REMOTE = "/var/log/journal/remote"


@contextmanager
def connection(edge: Host, variables: dict[str, Any]) -> Iterator[http.client.HTTPSConnection]:
    """Open a client's connection to an edge."""
    context = ssl.create_default_context(cadata=edge.file("/etc/fastmetal/tls/ca.crt").content_string)
    client = http.client.HTTPSConnection(variables["nginx_server_names"][0], timeout=15, context=context)
    yield client
    client.close()


def send_request(client: http.client.HTTPSConnection, request_id: str) -> None:
    """Send a request that no cache can answer."""
    client.request("GET", f"/api/v1/products?category={request_id}", headers={"X-Request-ID": request_id})
    answer = client.getresponse()
    answer.read()
    assert answer.status == 200


def database(server: Host, variables: dict[str, Any], sql: str) -> str:
    """Run SQL as the database's superuser."""
    name = variables["exporter_postgres_databases"][0]
    return str(
        server.check_output(
            f"runuser -u postgres -- psql --no-psqlrc -qAt -d {shlex.quote(name)} -c {shlex.quote(sql)}"
        )
    )


@contextmanager
def locked_table(server: Host, variables: dict[str, Any]) -> Iterator[None]:
    """Lock the table of products for 1.2 s, to make requests that read it slow."""
    tag = f"holder{uuid.uuid4().hex}"
    sql = f"BEGIN; LOCK TABLE products; SELECT pg_sleep(1.2) AS {tag}; COMMIT"
    words = ["systemd-run", "--quiet", "--collect", "--uid=postgres", "psql", "--no-psqlrc"]
    server.check_output(
        shlex.join([*words, f"--dbname={variables['exporter_postgres_databases'][0]}", "-c", sql])
    )
    waiting = (
        f"SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{tag[:9]}%' AND wait_event = 'PgSleep'"
    )
    while database(server, variables, waiting) == "0":
        time.sleep(0.05)
    yield


@pytest.mark.on("edge")
def test_a_slow_requests_lines_of_all_sources_are_found_by_its_id(
    host: Host, variables: dict[str, Any], find_host: Callable[[str], Host], ansible: Run
) -> None:
    request_id, sources = uuid.uuid4().hex, {"nginx", variables["app_name"], "postgres"}
    with connection(host, variables) as client, locked_table(find_host("postgres"), variables):
        send_request(client, request_id)
    deadline = time.monotonic() + 20
    while True:
        shown = ansible("ansible-playbook", "playbooks/logs.yml", "-e", f"request_id={request_id}")
        rows = re.findall(
            rf"^(\d\d:\d\d:\d\d\.\d{{3}})  (\S+) +({'|'.join(sources)}) +(.+)$", shown.stdout, re.MULTILINE
        )
        if {source for _, _, source, _ in rows} == sources or time.monotonic() > deadline:
            break
    assert {source for _, _, source, _ in rows} == sources, shown.stdout
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert sum(source == "nginx" for _, _, source, _ in rows) == 1
    (slow,) = (
        text for _, _, source, text in rows if source == variables["app_name"] and "Slow statement" in text
    )
    assert "statement=" in slow
    assert any("products" in text for _, _, source, text in rows if source == "postgres")
    assert {name for _, name, source, _ in rows if source == "nginx"} == {host.backend.hostname}


@pytest.mark.on("edge_beside_app", "complete")
def test_nginx_errors_and_odd_bytes_are_found(host: Host, site: Site, ansible: Run) -> None:
    """An error has a priority, and is shown without the query beside the request's line."""
    request_id, begin = uuid.uuid4().hex, host.check_output("date '+%F %T'")
    with unreachable_application(host, site.settings):
        headers = f"X-Request-ID: {request_id}\r\nUser-Agent: caf\xe9\r\n".encode("latin-1")
        assert site.send_path(f"/lost/{request_id}?secret=1".encode(), headers).status == 502
    with host.sudo():
        errors = host.check_output(f"journalctl -p err -t nginx -o cat --since '{begin}'")
    assert f"/lost/{request_id}" in errors
    time.sleep(1.5)  # Nginx writes its access log once a second.
    shown = ansible("ansible-playbook", "playbooks/logs.yml", "-e", f"request_id={request_id}")
    rows = [line for line in shown.stdout.splitlines() if f"/lost/{request_id}" in line]
    assert len(rows) == 2, shown.stdout
    assert "502" in rows[0]
    assert "crit connect() to unix:" in rows[1]
    assert "secret" not in shown.stdout


@pytest.mark.on("monitoring", "complete")
def test_an_invalid_or_unknown_request_id_is_reported(host: Host, ansible: Run) -> None:
    words = ("ansible-playbook", "playbooks/logs.yml", "--limit", host.backend.hostname, "-e")
    bad = ansible(*words, "request_id=a;b")
    assert bad.returncode
    assert "the X-Request-ID of a response: 8 to 64 letters" in bad.stdout
    unknown = ansible(*words, f"request_id={uuid.uuid4().hex}")
    assert unknown.returncode
    assert "No line of the last 48 hours is about the request" in unknown.stdout


@pytest.mark.on("postgres", "complete")
def test_postgres_logs_json_across_a_rotation(host: Host, variables: dict[str, Any]) -> None:
    tags = [uuid.uuid4().hex for _ in range(2)]
    limit = variables["postgresql_slow_query_ms"] / 1000
    with host.sudo():
        for tag in tags:
            database(host, variables, f"SELECT pg_sleep({limit + 0.05}) AS slow_{tag}")
            host.check_output("logrotate --force /etc/logrotate.d/fastmetal-postgresql")
        database(host, variables, f"SELECT pg_sleep({limit + 0.05}) AS slow_after")
        text = host.check_output("zcat --force /var/log/postgresql/fastmetal.json*")
    lines = [json.loads(line) for line in text.splitlines()]
    for tag in [*tags, "after"]:
        assert any(f"slow_{tag}" in line.get("statement", line["message"]) for line in lines), tag


def request_ids(collector: Host, identifier: str, prefix: str) -> set[str]:
    """Return the request IDs with a prefix in the collector's lines of an identifier."""
    command = (
        f"journalctl --quiet --directory={REMOTE} --output=cat --identifier={identifier} --grep={prefix}"
    )
    with collector.sudo():
        return set(re.findall(rf'"request_id":"({prefix}\d+)"', collector.run(command).stdout))


def wait_for_lines(collector: Host, prefix: str, count: int, *identifiers: str) -> None:
    """Wait until the collector has a line of each identifier for each request."""
    expected = {f"{prefix}{number}" for number in range(count)}
    deadline = time.monotonic() + 60
    missing = dict.fromkeys(identifiers, expected)
    while any(missing.values()) and time.monotonic() < deadline:
        time.sleep(0.5)
        missing = {
            identifier: expected - request_ids(collector, identifier, prefix) for identifier in missing
        }
    assert not any(missing.values()), {identifier: len(ids) for identifier, ids in missing.items()}


@pytest.mark.on("collector")
@pytest.mark.timeout(180)
def test_no_line_is_lost_while_the_collector_is_down_and_logs_rotate(
    host: Host, hosts: Hosts, all_variables: dict[str, dict[str, Any]]
) -> None:
    prefix, count = f"r{uuid.uuid4().hex[:16]}-", 150
    name = next(name for name, known in all_variables.items() if "edge" in known["group_names"])

    def make_requests() -> None:
        with connection(hosts[name], all_variables[name]) as client:
            for number in range(count):
                send_request(client, f"{prefix}{number}")
                time.sleep(0.03)

    with host.sudo():
        host.check_output("systemctl stop fastmetal-receive-logs systemd-journal-remote.socket")
        requests = threading.Thread(target=make_requests)
        requests.start()
        try:
            for sender in (one for known, one in hosts.items() if known != host.backend.hostname):
                sender.check_output("journalctl --rotate")
            hosts[name].check_output("logrotate --force /etc/logrotate.d/nginx")
        finally:
            requests.join()
            host.check_output("systemctl start fastmetal-receive-logs")
    wait_for_lines(host, prefix, count, "nginx", all_variables[name]["app_name"])


# Lists all units, files and listeners of log collection on a host.
# The mark in functions stays, and the certificates of the role tls: a later run may collect again.
TRACES = """
systemctl list-units --plain --no-legend '*journal-upload*' '*journal-remote*' 'fastmetal-*-logs*'
systemctl --failed --plain --no-legend
find /etc/systemd ! -type d -name 'fastmetal-*-logs*'
find /etc/systemd ! -type d -path '*journal-*.d/*'
find /etc/fastmetal /usr/local/lib/fastmetal -name '*logs*' ! -path '*/functions/*' ! -path '*/tls/*'
ss -Hltn | grep -E ':1953[12] '
"""


@pytest.mark.on("collector")
@pytest.mark.timeout(300)
def test_collection_is_disabled_completely_and_enabled_without_loss(
    host: Host, hosts: Hosts, all_variables: dict[str, dict[str, Any]], ansible: Run
) -> None:
    """The collector and an edge change; for other senders this is an outage of the collector."""
    collector = host.backend.hostname
    name = next(name for name, known in all_variables.items() if "edge" in known["group_names"])
    prefix, count = f"s{uuid.uuid4().hex[:16]}-", 20

    def switch(word: str) -> None:
        words = ("playbooks/monitoring.yml", "--limit", f"{name},{collector}", "-e", f"logs_collect={word}")
        done = ansible("ansible-playbook", *words)
        assert done.returncode == 0, done.stdout

    with host.sudo():
        kept = int(host.check_output(f"du --summarize {REMOTE}").split()[0])
        switch("false")
        try:
            for one in (host, hosts[name]):
                assert one.run(TRACES).stdout == ""
            assert int(host.check_output(f"du --summarize {REMOTE}").split()[0]) >= kept
            with connection(hosts[name], all_variables[name]) as client:
                for number in range(count):
                    send_request(client, f"{prefix}{number}")
                    if number == count // 2:
                        time.sleep(1.2)  # Nginx writes its log once a second.
                        hosts[name].check_output("logrotate --force /etc/logrotate.d/nginx")
        finally:
            switch("true")
        wait_for_lines(host, prefix, count, "nginx", all_variables[name]["app_name"])


@pytest.mark.on("collector")
def test_the_collector_has_lines_of_every_other_host(host: Host, hosts: Hosts) -> None:
    with host.sudo():
        known = set(host.check_output(f"journalctl --directory={REMOTE} --field=_HOSTNAME").split())
    assert known == hosts.keys() - {host.backend.hostname}


@pytest.mark.on("collector")
def test_collected_journals_stay_within_the_size_limit(host: Host, variables: dict[str, Any]) -> None:
    """Of archived journals of twice the limit, the oldest are deleted."""
    limit, now = variables["logs_max_size_mb"], int(time.time() * 1e6)
    with host.sudo():
        host.check_output("journalctl --rotate")
        source = host.check_output("find /var/log/journal -name 'system@*.journal' -size -64M | head -n 1")
        made = [
            f"{REMOTE}/remote-verify@{'0' * 32}-{n:016x}-{now + n:016x}.journal"
            for n in range(1, limit // 64)
        ]
        for file in made:
            host.check_output(f"cp {source} {file} && fallocate -l 128M {file}")
        host.check_output(f"chown systemd-journal-remote {REMOTE}/*")
        host.check_output("systemctl start fastmetal-bound-logs.service")
        used = int(host.check_output(f"du --summarize --block-size=1M {REMOTE}").split()[0])
        kept = set(host.check_output(f"ls -d {REMOTE}/*").split()) & set(made)
        host.check_output(f"rm -f {' '.join(made)}")
    assert 0 < used <= limit
    assert kept
    assert kept == set(sorted(made)[-len(kept) :])


@pytest.mark.on("collector")
def test_the_collector_requires_a_client_certificate_of_the_environment(
    host: Host, variables: dict[str, Any], tmp_path: Path
) -> None:
    address = variables["private_address"]
    with host.sudo():
        listening = {line.split()[3] for line in host.check_output("ss -Hltn").splitlines()}
        ca = host.file("/etc/fastmetal/tls/ca.crt").content_string
    assert f"{address}:{PORT}" in listening
    assert not {f"0.0.0.0:{PORT}", f"*:{PORT}", f"[::]:{PORT}"} & listening
    hello = ["openssl", "s_client", "-connect", f"{address}:{PORT}", "-groups", "ffdhe8192"]
    offered = subprocess.run(hello, input="", capture_output=True, text=True, check=False, timeout=20)
    assert "Cipher is (NONE)" in offered.stdout, (
        "groups of DHE let a few hellos a second occupy the collector"
    )
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "crt"), "-subj", "/CN=web1"]
    subprocess.run([*words, *files], check=True, capture_output=True)
    line = f"__REALTIME_TIMESTAMP=1\nMESSAGE=forged-{uuid.uuid4().hex}\n\n"
    for own_certificate in (False, True):
        context = ssl.create_default_context(cadata=ca)
        if own_certificate:
            context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
        client = http.client.HTTPSConnection(address, PORT, timeout=10, context=context)
        try:  # With TLS 1.3, the server rejects a client certificate only after the handshake.
            client.request("POST", "/upload", line, {"Content-Type": "application/vnd.fdo.journal"})
            answer = client.getresponse().status
        except (ssl.SSLError, ConnectionError):
            continue
        finally:
            client.close()
        pytest.fail(f"own certificate {own_certificate}: {answer}")
