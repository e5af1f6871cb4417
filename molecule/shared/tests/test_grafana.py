"""What Grafana would start with, and the way to it: its packages cannot be fetched here."""

from __future__ import annotations

import configparser
import http.client
import json
import shlex
import ssl
from typing import Any

import pytest
import yaml
from testinfra.host import Host

DIRECTORY = "/etc/fastmetal/grafana"
CREDENTIALS = f"{DIRECTORY}/credentials"


@pytest.mark.on("monitoring")
def test_secrets_are_roots_and_nowhere_else(host: Host, variables: dict[str, Any]) -> None:
    with host.sudo():
        assert (host.file(CREDENTIALS).mode, host.file(CREDENTIALS).user) == (0o700, "root")
        for name in ("admin_password", "secret_key"):
            file = host.file(f"{CREDENTIALS}/{name}")
            assert (file.mode, file.user) == (0o400, "root")
            assert file.content_string == variables[f"grafana_{name}"]
            holders = host.run(f"grep --recursive --files-with-matches {file.content_string} /etc").stdout
            assert holders.split() == [file.path]


@pytest.mark.on("monitoring")
def test_configuration_lets_nobody_in(host: Host, variables: dict[str, Any]) -> None:
    ini = configparser.ConfigParser(interpolation=None)
    ini.read_string(host.file(f"{DIRECTORY}/grafana.ini").content_string)
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
    for name in ("admin_password", "secret_key"):
        assert f"LoadCredential={name}:{CREDENTIALS}/{name}\n" in drop_in


@pytest.mark.on("monitoring")
def test_provisioning_leads_to_what_is_there(host: Host) -> None:
    """The data sources answer from this host, and the dashboards are where Grafana looks for them."""
    folder = f"{DIRECTORY}/provisioning"
    sources = yaml.safe_load(host.file(f"{folder}/datasources/fastmetal.yml").content_string)["datasources"]
    ready = "import sys,urllib.request as r; print(r.urlopen(sys.argv[1] + '/-/ready', timeout=10).status)"
    for source in sources:
        assert host.check_output(shlex.join(["python3", "-c", ready, source["url"]])) == "200", source["name"]
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
    console = next(tool for tool in variables["nginx_consoles"] if tool["path"] == "/grafana/")
    context = ssl.create_default_context(cadata=variables["tls_ca_certificate"])
    statuses = {}
    for path in (console["path"], f"{console['path'].strip('/')}x"):
        site = http.client.HTTPSConnection(variables["public_name"], context=context, timeout=20)
        site.request("GET", f"/{path.lstrip('/')}")
        statuses[path] = site.getresponse().status
        site.close()
    assert list(statuses.values()) == [502, 404]
