"""Key pairs: they verify, they match, and their keys are closed to those they do not concern."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

Pairs = list[dict[str, Any]]


@pytest.fixture
def directory(variables: dict[str, Any]) -> str:
    """Return where the pairs lie."""
    return str(variables["tls_directory"])


@pytest.fixture
def pairs(variables: dict[str, Any]) -> Pairs:
    """Return the host's pairs as the inventory wants them."""
    wanted: Pairs = variables["tls_certificates"]
    assert wanted
    return wanted


def test_certificates_verify_for_servers_and_clients(host: Host, directory: str, pairs: Pairs) -> None:
    for pair in pairs:
        for purpose in ("sslserver", "sslclient"):
            command = f"openssl verify -x509_strict -CAfile {directory}/ca.crt -purpose {purpose}"
            assert host.run(f"{command} {directory}/{pair['name']}.crt").succeeded, (pair["name"], purpose)


def test_certificates_cover_their_names_and_no_others(host: Host, directory: str, pairs: Pairs) -> None:
    for pair in pairs:
        verify = f"openssl verify -CAfile {directory}/ca.crt"
        for san in pair["sans"]:
            kind, _, value = san.partition(":")
            option = {"DNS": "-verify_hostname", "IP": "-verify_ip"}[kind]
            assert host.run(f"{verify} {option} %s {directory}/{pair['name']}.crt", value).succeeded, san
        assert host.run(f"{verify} -verify_hostname other.invalid {directory}/{pair['name']}.crt").failed


def test_a_third_of_the_life_is_left(host: Host, directory: str, pairs: Pairs, variables: Any) -> None:
    seconds = variables["tls_lifetime_days"] * 86400 // 3
    for pair in pairs:
        assert host.run(
            f"openssl x509 -checkend {seconds} -noout -in {directory}/{pair['name']}.crt"
        ).succeeded


def test_keys_are_for_their_group_only(host: Host, directory: str, pairs: Pairs) -> None:
    for pair in pairs:
        key = f"{directory}/{pair['name']}.key"
        outsider = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
        member = "setpriv --reuid=nobody --regid=nogroup --groups=ssl-cert"
        assert host.run(f"{outsider} cat {key}").failed
        assert host.run(f"{member} cat {key}").succeeded
        assert host.run(f"{member} cp /dev/null {key}").failed


def test_the_authoritys_key_is_not_on_the_host(host: Host, directory: str) -> None:
    authority = host.check_output(f"openssl x509 -in {directory}/ca.crt -noout -pubkey")
    for key in host.check_output("find /etc /root /tmp /var/tmp -xdev -name '*.key' -size -20k").split():
        assert host.run(f"openssl pkey -in {key} -pubout").stdout.strip() != authority.strip(), key


def test_a_handshake_needs_the_authority(host: Host, directory: str, pairs: Pairs) -> None:
    """A server with the pair is trusted by who knows the authority, and by nobody else."""
    port = 40443
    for pair in pairs:
        kind, _, value = pair["sans"][0].partition(":")
        option = {"DNS": "-verify_hostname", "IP": "-verify_ip"}[kind]
        files = f"-cert {directory}/{pair['name']}.crt -key {directory}/{pair['name']}.key"
        client = f"openssl s_client -connect 127.0.0.1:{port} -verify_return_error {option} {value}"
        script = f"""
        openssl s_server -accept 127.0.0.1:{port} {files} -quiet </dev/zero >/dev/null 2>&1 & server=$!
        trap 'kill $server' EXIT
        until (: < /dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; kill -0 $server || exit 3; done
        {client} -CAfile {directory}/ca.crt </dev/null >/dev/null 2>&1 || exit 1
        ! {client} -no-CAfile -no-CApath </dev/null >/dev/null 2>&1 || exit 2
        """
        assert host.run("timeout 20 bash -c %s", script).rc == 0, pair["name"]
