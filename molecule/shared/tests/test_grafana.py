"""Grafana's configuration, database and proxy route; Grafana itself is not installed in the lab."""

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


def secret_names(variables: dict[str, Any]) -> list[str]:
    """Return the names of Grafana's secrets."""
    database = ["database_password"] if variables["grafana_database_type"] == "postgres" else []
    return ["admin_password", "secret_key", *database]


def settings(host: Host) -> configparser.ConfigParser:
    """Return Grafana's configuration."""
    ini = configparser.ConfigParser(interpolation=None)
    ini.read_string(host.file(f"{DIRECTORY}/grafana.ini").content_string)
    return ini


@pytest.mark.on("monitoring")
def test_only_root_reads_secrets_and_only_from_the_credentials(host: Host, variables: dict[str, Any]) -> None:
    with host.sudo():
        assert (host.file(CREDENTIALS).mode, host.file(CREDENTIALS).user) == (0o700, "root")
        for name in secret_names(variables):
            file = host.file(f"{CREDENTIALS}/{name}")
            assert (file.mode, file.user) == (0o400, "root")
            assert file.content_string == variables[f"grafana_{name}"]
            holders = host.run(f"grep --recursive --files-with-matches {file.content_string} /etc").stdout
            assert holders.split() == [file.path]


@pytest.mark.on("monitoring")
def test_anonymous_access_and_sign_up_are_off(host: Host, variables: dict[str, Any]) -> None:
    ini = settings(host)
    assert ini["auth.anonymous"]["enabled"] == "false"
    assert ini["users"]["allow_sign_up"] == "false"
    assert ini["metrics"]["enabled"] == "false"
    assert ini["server"]["root_url"] == variables["grafana_url"]
    assert ini["server"]["root_url"].startswith("https://")
    assert ini["server"]["http_addr"] not in {"", "0.0.0.0"}  # noqa: S104 - forbidden here
    loopback = ini["server"]["http_addr"].startswith("127.")
    assert ini["server"]["protocol"] == ("http" if loopback else "https")
    reference = "$__file{/run/credentials/grafana-server.service/%s}"
    assert ini["security"]["admin_password"] == reference % "admin_password"
    assert ini["security"]["secret_key"] == reference % "secret_key"
    drop_in = host.file("/etc/systemd/system/grafana-server.service.d/fastmetal.conf").content_string
    for name in secret_names(variables):
        assert f"LoadCredential={name}:{CREDENTIALS}/{name}\n" in drop_in


@pytest.mark.on("monitoring")
def test_only_grafana_connects_to_its_database(
    host: Host, variables: dict[str, Any], find_host: Callable[[str], Host]
) -> None:
    """psql connects with Grafana's settings from its host, and is refused from another host."""
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

    def query(client: Host, connection: str) -> CommandResult:
        return client.run("PGPASSWORD=%s psql --no-psqlrc -qAt -c %s %s", password, sql, connection)

    assert query(host, target).stdout.strip() == "TLSv1.3"
    service = variables["exporter_postgres_databases"][0]
    assert "no pg_hba.conf entry" in query(host, target.replace("dbname=grafana", f"dbname={service}")).stderr
    other_host = find_host("postgres")
    assert other_host.backend.hostname != host.backend.hostname
    assert "no pg_hba.conf entry" in query(other_host, target).stderr


@pytest.mark.on("monitoring")
def test_provisioned_data_sources_and_dashboards_exist(host: Host) -> None:
    """This host reaches the data sources, and the dashboards are in the provisioned directory."""
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
def test_the_edge_proxies_to_grafana(variables: dict[str, Any]) -> None:
    """Grafana does not run, so the edge responds 502; the service would respond 404."""
    context = ssl.create_default_context(cadata=variables["tls_ca_certificate"])

    def status_of(address: str, name: str | None, path: str) -> int:
        """Return the status for a host name at an address, whose certificate must be for that name."""
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
    assert status_of(public, url.hostname, url.path) == 502
    assert status_of(public, public, "/grafanax") == 404
    if url.hostname == public:
        return
    # Grafana has its own server name: /grafana/ of the public name is unknown, and HTTP redirects to HTTPS.
    assert status_of(public, public, "/grafana/") == 404
    assert status_of(public, url.hostname, "/api/v1/products") == 502
    plain = http.client.HTTPConnection(public, timeout=20)
    plain.request("GET", "/d/overview?x=1", headers={"Host": url.hostname})
    answer = plain.getresponse()
    plain.close()
    assert (answer.status, answer.headers["Location"]) == (301, f"{variables['grafana_url']}d/overview?x=1")
