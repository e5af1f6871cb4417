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


def test_certificates_verify_for_servers_and_clients(
    host: Host, directory: str, certificates: Certificates
) -> None:
    for certificate in certificates:
        for purpose in ("sslserver", "sslclient"):
            command = f"openssl verify -x509_strict -CAfile {directory}/ca.crt -purpose {purpose}"
            assert host.run(f"{command} {directory}/{certificate['name']}.crt").succeeded, (
                certificate["name"],
                purpose,
            )


def test_certificates_cover_their_names_and_no_others(
    host: Host, directory: str, certificates: Certificates
) -> None:
    for certificate in certificates:
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


def test_a_third_of_the_lifetime_remains(
    host: Host, directory: str, certificates: Certificates, variables: Any
) -> None:
    seconds = variables["tls_lifetime_days"] * 86400 // 3
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
        member = "setpriv --reuid=nobody --regid=nogroup --groups=ssl-cert"
        assert host.run(f"{outsider} cat {key}").failed
        assert host.run(f"{member} cat {key}").succeeded
        assert host.run(f"{member} cp /dev/null {key}").failed


def test_the_cas_key_is_not_on_the_host(host: Host, directory: str) -> None:
    ca_public_key = host.check_output(f"openssl x509 -in {directory}/ca.crt -noout -pubkey")
    for key in host.check_output("find /etc /root /tmp /var/tmp -xdev -name '*.key' -size -20k").split():
        assert host.run(f"openssl pkey -in {key} -pubout").stdout.strip() != ca_public_key.strip(), key


def test_a_handshake_requires_the_ca(host: Host, directory: str, certificates: Certificates) -> None:
    """A client trusts a server with this certificate only if it trusts the CA."""
    port = 40443
    for certificate in certificates:
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
