"""Certificates and keys of a host: validity, names and file permissions."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

Certificates = list[dict[str, Any]]


@pytest.fixture
def directory() -> str:
    """Return the directory of the certificates."""
    return "/etc/fastmetal/tls"


@pytest.fixture
def certificates(variables: dict[str, Any]) -> Certificates:
    """Return the certificates that the inventory defines for the host."""
    expected: Certificates = variables["tls_certificates"]
    assert expected
    return expected


@pytest.fixture
def servers(certificates: Certificates) -> Certificates:
    """Return the certificates of servers."""
    return [certificate for certificate in certificates if "role" not in certificate]


def test_a_certificate_is_for_a_server_or_for_a_client(
    host: Host, directory: str, certificates: Certificates
) -> None:
    for certificate in certificates:
        shown = f"openssl x509 -noout -ext extendedKeyUsage -in {directory}/{certificate['name']}.crt"
        (usage,) = host.check_output(shown).splitlines()[1:]
        expected = "Client" if "role" in certificate else "Server"
        assert usage.strip() == f"TLS Web {expected} Authentication", certificate["name"]


def test_the_environments_ca_verifies_servers_and_no_clients(
    host: Host, directory: str, certificates: Certificates
) -> None:
    for certificate in certificates:
        purpose = "sslclient" if "role" in certificate else "sslserver"
        command = f"openssl verify -x509_strict -no-CApath -CAfile {directory}/ca.crt -purpose {purpose}"
        verified = host.run(f"{command} {directory}/{certificate['name']}.crt").succeeded
        assert verified == ("role" not in certificate), certificate["name"]


def test_only_app_hosts_have_the_internal_names(
    host: Host, directory: str, certificates: Certificates, variables: dict[str, Any]
) -> None:
    for certificate in certificates:
        shown = f"openssl x509 -noout -ext subjectAltName -in {directory}/{certificate['name']}.crt"
        own = certificate["name"] == "host" and "app" in variables["group_names"]
        assert (".internal" in host.check_output(shown)) == own, certificate["name"]


def test_certificates_cover_their_names_and_no_others(
    host: Host, directory: str, servers: Certificates
) -> None:
    for certificate in servers:
        verify = f"openssl verify -CAfile {directory}/ca.crt"
        for san in certificate["sans"]:
            kind, _, value = san.partition(":")
            option = {"DNS": "-verify_hostname", "IP": "-verify_ip"}[kind]
            assert host.run(f"{verify} {option} %s {directory}/{certificate['name']}.crt", value).succeeded, (
                san
            )
        assert host.run(
            f"{verify} -verify_hostname other.invalid {directory}/{certificate['name']}.crt"
        ).failed


def test_half_of_the_lifetime_remains(
    host: Host, directory: str, certificates: Certificates, variables: Any
) -> None:
    seconds = variables["tls_lifetime_days"] * 86400 // 2
    for certificate in certificates:
        assert host.run(
            f"openssl x509 -checkend {seconds} -noout -in {directory}/{certificate['name']}.crt"
        ).succeeded


def test_keys_are_readable_by_their_group_only(
    host: Host, directory: str, certificates: Certificates
) -> None:
    for certificate in certificates:
        key = f"{directory}/{certificate['name']}.key"
        outsider = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
        group = certificate.get("group", "ssl-cert")
        member = f"setpriv --reuid=nobody --regid=nogroup --groups={group}"
        assert host.run(f"{outsider} cat {key}").failed
        assert host.run(f"{member} cat {key}").succeeded
        assert host.run(f"{member} cp /dev/null {key}").failed


def test_other_servers_cannot_read_the_public_key(
    host: Host, directory: str, variables: dict[str, Any]
) -> None:
    if not any(certificate["name"] == "public" for certificate in variables["tls_certificates"]):
        return
    for account in ("postgres", "redis", "prometheus"):
        if host.user(account).exists:
            read = f"setpriv --reuid={account} --regid={account} --init-groups cat {directory}/public.key"
            assert host.run(read).failed, account


def test_the_cas_key_is_not_on_the_host(host: Host, directory: str) -> None:
    ca_public_key = host.check_output(f"openssl x509 -in {directory}/ca.crt -noout -pubkey")
    for key in host.check_output("find /etc /root /tmp /var/tmp -xdev -name '*.key' -size -20k").split():
        assert host.run(f"openssl pkey -in {key} -pubout").stdout.strip() != ca_public_key.strip(), key


def test_a_handshake_requires_the_ca(host: Host, directory: str, servers: Certificates) -> None:
    """A client trusts a server with this certificate only if it trusts the CA."""
    port = 40443
    for certificate in servers:
        kind, _, value = certificate["sans"][0].partition(":")
        option = {"DNS": "-verify_hostname", "IP": "-verify_ip"}[kind]
        files = f"-cert {directory}/{certificate['name']}.crt -key {directory}/{certificate['name']}.key"
        client = f"openssl s_client -connect 127.0.0.1:{port} -verify_return_error {option} {value}"
        script = f"""
        openssl s_server -accept 127.0.0.1:{port} {files} -quiet </dev/zero >/dev/null 2>&1 & server=$!
        trap 'kill $server' EXIT
        until (: < /dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; kill -0 $server || exit 3; done
        {client} -CAfile {directory}/ca.crt </dev/null >/dev/null 2>&1 || exit 1
        ! {client} -no-CAfile -no-CApath </dev/null >/dev/null 2>&1 || exit 2
        """
        assert host.run("timeout 20 bash -c %s", script).rc == 0, certificate["name"]
