"""Filters for the certificate authorities (CA) that sign certificates and that listeners trust."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Of the environment's CA, which signs for servers, in the results.
SERVERS = ""
COMMON_NAME_LENGTH = 64


def client_authority(certificate: str, key: str, role: str) -> dict[str, str]:
    """Return the CA of a role's clients, whose key follows from the key of the environment's CA.

    It is valid as long as that CA and signs client certificates only. Ed25519 signs without randomness, so
    the certificate is the same on each call.
    """
    ca = x509.load_pem_x509_certificate(certificate.encode())
    ca_key = serialization.load_pem_private_key(key.encode(), None)
    secret = ca_key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    info = f"fastmetal client CA {role}".encode()
    seed = HKDF(hashes.SHA256(), length=32, salt=None, info=info).derive(secret)
    own_key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    names = ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    suffix = f" {role} clients"
    common_name = (str(names[0].value) if names else "")[: COMMON_NAME_LENGTH - len(suffix)] + suffix
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name.strip())])
    serial = int.from_bytes(hashlib.sha256(seed).digest()[:16], "big") >> 1
    certified = (
        x509.CertificateBuilder(subject, subject, own_key.public_key(), serial)
        .not_valid_before(ca.not_valid_before_utc)
        .not_valid_after(ca.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own_key.public_key()), critical=False)
        .sign(own_key, None)
    )
    pem = serialization.Encoding.PEM
    private = own_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {"certificate": certified.public_bytes(pem).decode(), "key": private.decode()}


def tls_authorities(certificate: str, key: str, roles: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return certificate and key of each signing CA: the environment's (""), and one for each client role."""
    derived = {role: client_authority(certificate, key, role) for role in roles if role != SERVERS}
    return {SERVERS: {"certificate": certificate, "key": key}, **derived}


def tls_bundles(
    trust: Mapping[str, Iterable[str]], certificate: str, key: str, other: str = "", other_key: str = ""
) -> dict[str, str]:
    """Return the CA certificates in each bundle: {name: PEM}, in the same order whichever CA signs.

    trust: The roles of each bundle; "" is the environment's CA.
    other: A second CA and its key, trusted while one replaces the other.
    """
    roles = {role for names in trust.values() for role in names}
    known = [tls_authorities(*pair, roles) for pair in ((certificate, key), (other, other_key)) if pair[0]]
    return {
        name: "".join(sorted({f"{ca[role]['certificate'].strip()}\n" for ca in known for role in names}))
        for name, names in trust.items()
    }


def _usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {function.__name__: function for function in (tls_authorities, tls_bundles)}
