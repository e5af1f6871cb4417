"""The authorities that sign client certificates, and the files of those that listeners trust."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from plugins.filter.tls_authorities import client_authority, tls_authorities, tls_bundles
from tests.unit.test_tls_certificates import CertificateAuthority

Pair = tuple[str, str]


def make_pair() -> Pair:
    """Return the certificate and the key of a CA, in PEM."""
    ca = CertificateAuthority()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = ca.key.private_bytes(pem, pkcs8, serialization.NoEncryption())
    return ca.certificate.public_bytes(pem).decode(), key.decode()


@pytest.fixture
def pair() -> Pair:
    """Return a CA."""
    return make_pair()


def test_the_same_ca_and_role_give_the_same_authority(pair: Pair) -> None:
    assert client_authority(*pair, "edge") == client_authority(*pair, "edge")


def test_roles_and_cas_differ(pair: Pair) -> None:
    keys = {client_authority(*ca, role)["key"] for ca in (pair, make_pair()) for role in ("edge", "logs")}
    assert len(keys) == 4


def test_an_authority_signs_client_certificates_only(pair: Pair) -> None:
    derived = client_authority(*pair, "edge")
    certificate = x509.load_pem_x509_certificate(derived["certificate"].encode())
    assert certificate.subject.rfc4514_string() == "CN=Test CA edge clients"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    assert load_pem_private_key(derived["key"].encode(), None).public_key() == certificate.public_key()
    environment = x509.load_pem_x509_certificate(pair[0].encode())
    assert certificate.not_valid_after_utc == environment.not_valid_after_utc


def test_a_long_name_is_shortened(pair: Pair) -> None:
    derived = client_authority(*pair, "x" * 40)
    name = x509.load_pem_x509_certificate(derived["certificate"].encode()).subject.rfc4514_string()
    assert len(name.removeprefix("CN=")) <= 64


def test_the_environments_ca_signs_for_servers(pair: Pair) -> None:
    authorities = tls_authorities(*pair, ["", "edge"])
    assert authorities[""] == {"certificate": pair[0], "key": pair[1]}
    assert authorities["edge"] == client_authority(*pair, "edge")


def test_a_bundle_has_its_roles_only(pair: Pair) -> None:
    bundles = tls_bundles({"ca": [""], "clients-app": ["edge", "monitoring"]}, *pair)
    assert bundles["ca"].split() == pair[0].split()
    found = x509.load_pem_x509_certificates(bundles["clients-app"].encode())
    names = {certificate.subject.rfc4514_string() for certificate in found}
    assert names == {"CN=Test CA edge clients", "CN=Test CA monitoring clients"}


def test_a_rotation_trusts_both_cas_in_the_same_order(pair: Pair) -> None:
    other = make_pair()
    before, after = tls_bundles({"a": ["edge"]}, *pair, *other), tls_bundles({"a": ["edge"]}, *other, *pair)
    assert before == after
    assert len(x509.load_pem_x509_certificates(before["a"].encode())) == 2
