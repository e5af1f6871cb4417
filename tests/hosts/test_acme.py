"""Certificates of an ACME CA: Pebble, the CA for tests, certifies two edges over both challenges."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.conftest import started
from tests.lab import ROOT, Lab, Run, make_environment, play
from tests.load.background import loaded

pytestmark = pytest.mark.timeout(600)

HOSTS = {"ca": "trixie", "other": "bookworm"}
NAME, REDIRECTED = "api.acme.test", "www.acme.test"
MAC_KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
HOURS_160 = 160 * 3600
HOOK_PATH = "/usr/local/bin/dns-hook"
TESTSRV = "http://{ca}:8055/"
# Pebble asks the DNS of its test server, in which each name has the address of the host `other`.
PEBBLE = """
set -e
mkdir -p /etc/pebble
cat > /etc/pebble/{name}.json <<'EOF'
{config}
EOF
systemctl reset-failed pebble-{name} 2>/dev/null || true
systemd-run --quiet --unit=pebble-{name} --setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_AUTHZREUSE=0 \
  pebble -config /etc/pebble/{name}.json -dnsserver 127.0.0.1:8053
"""
HOOK = """#!/usr/bin/python3
import json, sys, urllib.request
action, host, value = sys.argv[1:4]
body = {{"host": host}} | ({{"value": value}} if action == "present" else {{}})
path = "set-txt" if action == "present" else "clear-txt"
urllib.request.urlopen("{server}" + path, json.dumps(body).encode())
"""


# Close the account as its owner may; a CA that closes it answers the same.
CLOSE = """
import json, os
os.environ["REQUESTS_CA_BUNDLE"] = "/etc/fastmetal/tls/ca.crt"
import josepy
from acme import client, errors, messages
key = josepy.JWK.load(json.load(open("/etc/fastmetal/acme/secrets.json"))["account_key"].encode())
network = client.ClientNetwork(key, alg=josepy.ES256)
connection = client.ClientV2(client.ClientV2.get_directory("{url}", network), network)
try:
    connection.new_account(messages.NewRegistration.from_data(terms_of_service_agreed=True))
except errors.ConflictError as known:
    account = messages.RegistrationResource(uri=known.location, body=messages.Registration())
network.account = account
connection.deactivate_registration(account)
"""


class Edges:
    """The two edges, and the CA on one of them."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.built = Run(0, "")
        self.address = {name: host["address"] for name, host in lab.state["hosts"].items()}
        authorities = {
            "letsencrypt": None,
            "first": {"directory_url": self.url(14000), "ca_certificate": "/etc/fastmetal/tls/ca.crt"},
            "second": {
                "directory_url": self.url(14001),
                "ca_certificate": "/etc/fastmetal/tls/ca.crt",
                "eab_key_id": "kid-1",
            },
        }
        self.environment = make_environment(
            folder / "env",
            {name: {} for name in HOSTS},
            lab_name=lab.name,
            # The other roles play no part, and to judge their variables takes longer than these.
            preflight_roles=["preflight", "tls", "acme", "nginx"],
            # Pebble listens, and these hosts have no firewall.
            preflight_take_over=["firewall"],
            public_name=NAME,
            services={"api": {"redirect_names": [REDIRECTED]}, "shop": {"names": ["*.shop.test"]}},
            nginx_server_snippet="location = /ping { return 204; }",
            nginx_tls="acme",
            acme_email="ops@acme.test",
            acme_authorities=authorities,
            acme_eab_keys={"second": MAC_KEY},
            acme_certificates={"shop": {"challenge": "dns", "key_type": "rsa2048"}, "consoles": None},
            acme_dns_provider="exec",
            acme_dns_resolvers=[f"{self.address['ca']}:8053"],
            acme_dns_check=False,
            acme_environment={"EXEC_PATH": HOOK_PATH},
        )

    def url(self, port: int) -> str:
        """Return the directory URL of the CA at a port."""
        return f"https://{self.address['ca']}:{port}/dir"

    def play(self, *playbooks: Path | str) -> Run:
        """Run playbooks on both hosts."""
        run = play("-i", self.environment, *playbooks)
        assert run.status == 0, run.output
        return run

    def start_ca(self, name: str, port: int, **more: Any) -> None:
        """Start a Pebble, without what an earlier one knew."""
        config = {
            "listenAddress": f"0.0.0.0:{port}",
            "managementListenAddress": f"127.0.0.1:{port + 1000}",
            "certificate": "/etc/fastmetal/tls/host.crt",
            "privateKey": "/etc/fastmetal/tls/host.key",
            "httpPort": 80,
            "tlsPort": 443,
            # The first one is Pebble 2.4's.
            "certificateValidityPeriod": HOURS_160,
            "profiles": {"default": {"description": "160 hours", "validityPeriod": HOURS_160}},
            **more,
        }
        self.lab.ssh("ca", PEBBLE.format(name=name, config=json.dumps({"pebble": config})))
        self.lab.ssh("ca", f"timeout 10 sh -c 'until ss -Hltn | grep -q :{port}; do sleep 0.1; done'")

    def stop_ca(self, name: str) -> None:
        """Stop a Pebble."""
        self.lab.ssh("ca", f"systemctl stop pebble-{name}")

    def served(self, host: str, name: str = NAME) -> x509.Certificate:
        """Return the certificate with which an edge answers for a name."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection((self.address[host], 443), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")

    def issue(self, host: str, *names: str) -> str:
        """Issue what is due, or certain certificates, and return what the command prints."""
        return self.lab.ssh(host, f"fastmetal-acme issue {' '.join(names)}")

    def state(self, host: str, name: str) -> dict[str, Any]:
        """Return what the client knows about a certificate."""
        entry: dict[str, Any] = json.loads(self.lab.ssh(host, "cat /var/lib/fastmetal-acme/state.json"))[name]
        return entry

    def dns(self, path: str, **body: Any) -> None:
        """Change a record of the test server."""
        connection = http.client.HTTPConnection(self.address["ca"], 8055, timeout=5)
        connection.request("POST", f"/{path}", json.dumps(body))
        assert connection.getresponse().status == 200
        connection.close()

    def root(self, port: int) -> str:
        """Return the root certificate of the CA at a port."""
        code = (
            "import ssl, urllib.request as u; c = ssl._create_unverified_context();"
            f" print(u.urlopen('https://127.0.0.1:{port + 1000}/roots/0', context=c).read().decode())"
        )
        return self.lab.ssh("ca", f'python3 -c "{code}"')


def issuer(certificate: x509.Certificate) -> str:
    """Return the name of a certificate's issuer."""
    return certificate.issuer.rfc4514_string()


@pytest.fixture(scope="module")
def edges(measured: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edges]:
    """Return two edges that have been built while the CA was away."""
    begun = time.monotonic()
    folder = tmp_path_factory.mktemp("acme")
    with started("pytest-acme", measured, **HOSTS) as lab:
        edges = Edges(lab, folder)
        tls = {
            "hosts": "all",
            "become": True,
            "gather_facts": False,
            "any_errors_fatal": True,
            "pre_tasks": [{"name": "Check", "ansible.builtin.include_role": {"name": "preflight"}}],
            "roles": [{"role": "tls"}],
        }
        (folder / "tls.yml").write_text(yaml.safe_dump([tls]))
        hook = HOOK.format(server=TESTSRV.format(ca=edges.address["ca"]))
        for host in HOSTS:
            lab.ssh(
                host, f"cat > /usr/local/bin/dns-hook <<'EOF'\n{hook}\nEOF\nchmod 755 /usr/local/bin/dns-hook"
            )
        edges.built = edges.play(folder / "tls.yml", ROOT / "playbooks/edge.yml")
        measured.append(f"two edges with a placeholder were ready after {time.monotonic() - begun:.0f} s")
        lab.ssh(
            "ca",
            "DEBIAN_FRONTEND=noninteractive apt-get install -qq pebble >/dev/null",
        )
        lab.ssh(
            "ca",
            "systemd-run --quiet --unit=challtestsrv pebble-challtestsrv -management :8055 -dns01 :8053"
            " -http01 '' -https01 '' -tlsalpn01 '' -doh '' -defaultIPv6 ''"
            f" -defaultIPv4 {edges.address['other']}",
        )
        yield edges


def names(certificate: x509.Certificate) -> set[str]:
    """Return the host names of a certificate."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(found.get_values_for_type(x509.DNSName))


def test_edges_start_with_a_placeholder_while_no_ca_answers(edges: Edges) -> None:
    assert "failed api: first: " in edges.built.output
    for host in HOSTS:
        assert issuer(edges.served(host)) == "CN=Fastmetal lab CA"
        assert edges.state(host, "api")["failed"] == 1


def test_both_challenges_issue_on_both_edges(edges: Edges) -> None:
    """The name leads to the host `other` only, so this also proves that an edge answers for another one."""
    edges.start_ca("first", 14000)
    begun = time.monotonic()
    for host in HOSTS:
        assert edges.issue(host).split() == ["issued", "api", "issued", "shop"]
    assert (time.monotonic() - begun) / 4 < 15
    for host in HOSTS:
        api, shop = edges.served(host), edges.served(host, "eu.shop.test")
        assert "Pebble" in issuer(api)
        assert "Pebble" in issuer(shop)
        assert (names(api), names(shop)) == ({NAME, REDIRECTED}, {"*.shop.test"})
        assert edges.served(host, REDIRECTED) == api
        assert isinstance(api.public_key(), ec.EllipticCurvePublicKey)
        assert isinstance(shop.public_key(), rsa.RSAPublicKey)
        entry = edges.state(host, "api")
        assert (entry["failed"], entry["error"]) == (0, "")
        lifetime = api.not_valid_after_utc.timestamp() - api.not_valid_before_utc.timestamp()
        assert abs(lifetime - HOURS_160) < 2
        assert abs(entry["next"] - api.not_valid_before_utc.timestamp() - lifetime * 2 / 3) < 2
        # The timer's unit has nothing to do, nor has another run.
        edges.lab.ssh(host, "systemctl start fastmetal-acme.service")
        assert edges.issue(host) == ""
        assert edges.served(host) == api


def test_keys_are_for_nginx_only_and_the_unit_is_confined(edges: Edges) -> None:
    for host in HOSTS:
        modes = edges.lab.ssh(
            host, "stat -Lc '%a %U %G' /var/lib/fastmetal-acme/live/*/privkey.pem"
        ).splitlines()
        assert modes == ["640 fastmetal-acme www-data"] * 2
        assert "secret" not in edges.lab.ssh(host, "cat /etc/fastmetal/acme/settings.json")
        assert edges.lab.ssh(host, "stat -c '%a %U' /etc/fastmetal/acme/secrets.json").split() == [
            "400",
            "root",
        ]
        report = edges.lab.ssh(host, "systemd-analyze security --no-pager fastmetal-acme.service")
        (score,) = re.findall(r"exposure level for fastmetal-acme[.]service: ([0-9.]+)", report)
        assert float(score) <= 3
        assert "fastmetal-acme.timer" in edges.lab.ssh(host, "systemctl list-timers --no-pager")


def test_renewals_under_load_lose_no_request(edges: Edges, tmp_path: Path, measured: list[str]) -> None:
    (tmp_path / "root.pem").write_text(edges.root(14000))
    plan = {
        "url": f"https://{NAME}",
        "address": edges.address["ca"],
        "ca": str(tmp_path / "root.pem"),
        "rate": 40,
        "mix": "rR",
        "requests": {"r": {"path": "/ping", "status": 204}},
        "run": "acme",
    }
    before = edges.served("ca")
    with loaded(plan, tmp_path) as load:
        time.sleep(1)
        for _ in range(3):
            assert edges.issue("ca", "api") == "issued api\n"
        time.sleep(1)
    assert edges.served("ca") != before
    measured.append(f"three renewals under load: {load.report.figures}")
    assert load.report.figures["requests"] > 100
    assert load.report.failures == []


def test_a_ca_that_has_lost_the_account_gets_it_again(edges: Edges) -> None:
    edges.stop_ca("first")
    edges.start_ca("first", 14000)
    assert edges.issue("other", "api") == "issued api\n"


def test_another_label_replaces_an_account_that_the_ca_has_closed(edges: Edges) -> None:
    before = edges.served("other")
    close = shlex.quote(CLOSE.format(url=edges.url(14000)))
    edges.lab.ssh("other", f"python3 -c {close}")
    said = edges.issue("other", "api")
    assert said.startswith("failed api: first: ")
    assert "deactivated. Set acme_account to another label" in said
    assert edges.served("other") == before
    variables = edges.environment / "group_vars/all/main.yml"
    variables.write_text(variables.read_text() + "acme_account: second\n")
    edges.play(ROOT / "playbooks/edge.yml")
    for host in HOSTS:
        assert edges.issue(host, "api") == "issued api\n"
    assert edges.served("other") != before


def test_wrong_dns_is_explained_and_leaves_clients_alone(edges: Edges) -> None:
    before = edges.served("other")
    # Nothing listens on port 80 of the control node.
    edges.dns("add-a", host=f"{REDIRECTED}.", addresses=[edges.address["ca"].rpartition(".")[0] + ".1"])
    said = edges.issue("other", "api")
    assert said.startswith("failed api: first: ")
    assert REDIRECTED in said
    assert "urn:ietf:params:acme:error:connection" in said
    edges.dns("clear-a", host=f"{REDIRECTED}.")
    assert edges.served("other") == before
    assert edges.issue("other", "api") == "issued api\n"
    assert edges.state("other", "api")["failed"] == 0


def test_the_second_ca_issues_when_the_first_is_away(edges: Edges) -> None:
    """It asks for an external account binding."""
    edges.stop_ca("first")
    edges.start_ca(
        "second", 14001, externalAccountBindingRequired=True, externalAccountMACKeys={"kid-1": MAC_KEY}
    )
    for host in HOSTS:
        before = edges.served(host)
        assert edges.issue(host, "api") == "issued api\n"
        assert issuer(edges.served(host)) != issuer(before)
        assert edges.state(host, "api")["directory_url"] == edges.url(14001)


def test_clients_notice_nothing_while_no_ca_answers(edges: Edges) -> None:
    before = edges.served("ca")
    edges.stop_ca("second")
    said = edges.issue("ca", "api")
    assert said.startswith("failed api: first: ")
    assert "second: " in said
    assert edges.served("ca") == before
    entry = edges.state("ca", "api")
    assert entry["failed"] == 1
    assert entry["failures"] >= 2
    assert entry["next"] > time.time()


def test_a_second_run_changes_nothing(edges: Edges) -> None:
    run = edges.play(ROOT / "playbooks/edge.yml")
    assert run.changed == dict.fromkeys(HOSTS, 0)


def test_a_certificate_is_renewed_once_two_thirds_of_its_life_have_passed(edges: Edges) -> None:
    """The CA issues certificates of 30 seconds."""
    profiles = {"default": {"description": "30 seconds", "validityPeriod": 30}}
    edges.start_ca("first", 14000, certificateValidityPeriod=30, profiles=profiles)
    edges.issue("other", "api")
    before = edges.served("other")
    edges.lab.ssh("other", "systemctl start fastmetal-acme.service")
    assert edges.served("other") == before
    time.sleep(max(0.0, before.not_valid_before_utc.timestamp() + 21 - time.time()))
    edges.lab.ssh("other", "systemctl start fastmetal-acme.service")
    assert edges.served("other") != before
    jitter = "systemctl show --property=RandomizedDelayUSec --value fastmetal-acme.timer"
    assert edges.lab.ssh("other", jitter).strip() == "30min"


def test_leaving_the_ca_removes_its_client_and_its_credentials(edges: Edges) -> None:
    variables = {"nginx_tls": "environment", "preflight_roles": ["preflight", "tls", "nginx"]}
    edges.play("-e", json.dumps(variables), ROOT / "playbooks/edge.yml")
    for host in HOSTS:
        assert issuer(edges.served(host)) == "CN=Fastmetal lab CA"
        assert edges.lab.ssh(host, "ls /etc/fastmetal/acme") == ""
        assert "fastmetal-acme" not in edges.lab.ssh(host, "systemctl list-timers --all")
