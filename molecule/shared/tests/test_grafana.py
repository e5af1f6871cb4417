"""What Grafana would start with, and the way to it: its packages cannot be fetched here."""

from __future__ import annotations

import configparser
import http.client
import json
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from testinfra.backend.base import CommandResult
from testinfra.host import Host

from tests.remote import fetch

DIRECTORY = "/etc/fastmetal/grafana"
CREDENTIALS = f"{DIRECTORY}/credentials"


def secrets(variables: dict[str, Any]) -> list[str]:
    """Return the names of what Grafana must not tell."""
    database = ["database_password"] if variables["grafana_database_type"] == "postgres" else []
    return ["admin_password", "secret_key", *database]


def settings(host: Host) -> configparser.ConfigParser:
    """Return Grafana's configuration."""
    ini = configparser.ConfigParser(interpolation=None)
    ini.read_string(host.file(f"{DIRECTORY}/grafana.ini").content_string)
    return ini


@pytest.mark.on("monitoring")
def test_secrets_are_roots_and_nowhere_else(host: Host, variables: dict[str, Any]) -> None:
    with host.sudo():
        assert (host.file(CREDENTIALS).mode, host.file(CREDENTIALS).user) == (0o700, "root")
        for name in secrets(variables):
            file = host.file(f"{CREDENTIALS}/{name}")
            assert (file.mode, file.user) == (0o400, "root")
            assert file.content_string == variables[f"grafana_{name}"]
            holders = host.run(f"grep --recursive --files-with-matches {file.content_string} /etc").stdout
            assert holders.split() == [file.path]


@pytest.mark.on("monitoring")
def test_configuration_lets_nobody_in(host: Host, variables: dict[str, Any]) -> None:
    ini = settings(host)
    assert ini["auth.anonymous"]["enabled"] == "false"
    assert ini["users"]["allow_sign_up"] == "false"
    assert ini["server"]["root_url"] == variables["grafana_url"]
    assert ini["server"]["root_url"].startswith("https://")
    assert ini["server"]["http_addr"] not in {"", "0.0.0.0"}  # noqa: S104 - what must not be there
    loopback = ini["server"]["http_addr"].startswith("127.")
    assert ini["server"]["protocol"] == ("http" if loopback else "https")
    reference = "$__file{/run/credentials/grafana-server.service/%s}"
    assert ini["security"]["admin_password"] == reference % "admin_password"
    assert ini["security"]["secret_key"] == reference % "secret_key"
    drop_in = host.file("/etc/systemd/system/grafana-server.service.d/fastmetal.conf").content_string
    for name in secrets(variables):
        assert f"LoadCredential={name}:{CREDENTIALS}/{name}\n" in drop_in


@pytest.mark.on("monitoring")
def test_its_database_is_there_for_it_alone(
    host: Host, variables: dict[str, Any], nearest: Callable[[str], Host]
) -> None:
    """What its configuration says is tried with psql, from its host and from one that is not let in."""
    database = settings(host)["database"]
    assert database["type"] == variables["grafana_database_type"]
    if database["type"] == "sqlite3":
        assert "host" not in database
        return
    assert database["password"] == "$__file{/run/credentials/grafana-server.service/database_password}"
    address, _, port = database["host"].partition(":")
    keys = {
        "host": address,
        "port": port,
        "dbname": database["name"],
        "user": database["user"],
        "sslmode": database["ssl_mode"],
        "sslrootcert": database["ca_cert_path"],
    }
    target = " ".join(f"{key}={value}" for key, value in keys.items())
    sql = (
        "BEGIN; CREATE TABLE probe (id int); ROLLBACK;"
        "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    )
    with host.sudo():
        password = host.file(f"{CREDENTIALS}/database_password").content_string
        host.check_output("command -v psql || apt-get install -qq --no-install-recommends postgresql-client")

    def ask(client: Host, connection: str) -> CommandResult:
        return client.run("PGPASSWORD=%s psql --no-psqlrc -qAt -c %s %s", password, sql, connection)

    assert ask(host, target).stdout.strip() == "TLSv1.3"
    service = variables["exporter_postgres_database"]
    assert "no pg_hba.conf entry" in ask(host, target.replace("dbname=grafana", f"dbname={service}")).stderr
    stranger = nearest("postgres")
    assert stranger.backend.hostname != host.backend.hostname
    assert "no pg_hba.conf entry" in ask(stranger, target).stderr


@pytest.mark.on("monitoring")
def test_provisioning_leads_to_what_is_there(host: Host) -> None:
    """The data sources answer from this host, and the dashboards are where Grafana looks for them."""
    folder = f"{DIRECTORY}/provisioning"
    sources = yaml.safe_load(host.file(f"{folder}/datasources/fastmetal.yml").content_string)["datasources"]
    for source in sources:
        fetch(host, f"{source['url']}/-/ready")
    (provider,) = yaml.safe_load(host.file(f"{folder}/dashboards/fastmetal.yml").content_string)["providers"]
    found = host.check_output(f"cat {provider['options']['path']}/*.json | python3 -c '{COUNT}'")
    assert json.loads(found) == {"dashboards": 8, "uids": 8}


COUNT = (
    "import json,sys;text=sys.stdin.read().strip();decode=json.JSONDecoder().raw_decode;found=[]\n"
    "while text:\n"
    "  item,end=decode(text);found.append(item);text=text[end:].strip()\n"
    'print(json.dumps({"dashboards":len(found),"uids":len({item["uid"] for item in found})}))'
)


@pytest.mark.on("edge")
def test_the_edge_leads_to_grafana(variables: dict[str, Any]) -> None:
    """Nobody listens there, which the edge says in its own form; the service would answer 404."""
    context = ssl.create_default_context(cadata=variables["tls_ca_certificate"])

    def ask(address: str, name: str | None, path: str) -> int:
        """Ask as a client does for whom the name leads to the address; the certificate must be the name's."""
        assert name
        with socket.create_connection((address, 443), timeout=20) as plain:
            site = http.client.HTTPSConnection(name)
            site.sock = context.wrap_socket(plain, server_hostname=name)
            site.request("GET", path)
            status = site.getresponse().status
            site.close()
        return status

    url = urlsplit(variables["grafana_url"])
    public = variables["public_name"]
    assert ask(public, url.hostname, url.path) == 502
    assert ask(public, public, "/grafanax") == 404
    if url.hostname == public:
        return
    # A server of its own: its path is nothing below the public name, and plain HTTP is led to it.
    assert ask(public, public, "/grafana/") == 404
    assert ask(public, url.hostname, "/api/v1/products") == 502
    plain = http.client.HTTPConnection(public, timeout=20)
    plain.request("GET", "/d/overview?x=1", headers={"Host": url.hostname})
    answer = plain.getresponse()
    plain.close()
    assert (answer.status, answer.headers["Location"]) == (301, f"{variables['grafana_url']}d/overview?x=1")
