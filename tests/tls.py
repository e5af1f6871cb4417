"""Clients of TLS listeners: what they negotiate, and which client certificates they admit."""

from __future__ import annotations

import datetime
import socket
import ssl
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from plugins.filter.tls_authorities import client_authority

# DHE costs the server so much that ten hellos a second occupy it (D(HE)at).
REFUSED_GROUPS = ("ffdhe2048", "ffdhe8192", "X448", "secp521r1")
ACCEPTED_GROUPS = ("X25519", "prime256v1", "secp384r1")
REFUSED_CIPHERS = ("DHE:@SECLEVEL=0", "ECDHE+AES+SHA1:ECDHE+AES+SHA256:!AESGCM")


def handshake(listener: str, *options: str) -> str:
    """Return what openssl says about a handshake with address:port."""
    command = ["openssl", "s_client", "-connect", listener, *options]
    # A server may greet with bytes of its own protocol.
    done = subprocess.run(
        command, input="", capture_output=True, text=True, errors="replace", check=False, timeout=20
    )
    assert "CONNECTED" in done.stdout, done.stderr
    return done.stdout


def admits(address: str, port: int, certificate: Path | None, key: Path | None) -> bool:
    """Return whether a TLS listener answers a request of a client with this certificate, or without one.

    Nginx completes the handshake with any certificate and answers 400 to those that it does not accept.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate, key)
    plain = socket.create_connection((address, port), timeout=10)
    try:
        with context.wrap_socket(plain) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            status = connection.recv(15).partition(b" ")[2][:3]
    except (ssl.SSLError, ConnectionError):
        return False
    return status not in (b"", b"400")


def client_pair(role: str, certificate: str, key: str) -> tuple[str, str]:
    """Return a certificate and key of a client with a role, in PEM, of the environment's CA."""
    signer = client_authority(certificate, key, role)
    authority = x509.load_pem_x509_certificate(signer["certificate"].encode())
    signing_key = serialization.load_pem_private_key(signer["key"].encode(), None)
    assert isinstance(signing_key, ed25519.Ed25519PrivateKey)
    own = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    signed = (
        x509.CertificateBuilder(authority.subject, subject, own.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signing_key, None)
    )
    pem = serialization.Encoding.PEM
    private = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return signed.public_bytes(pem).decode(), private.decode()
