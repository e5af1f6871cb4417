"""When the role tls issues a certificate again."""

from __future__ import annotations

import datetime
import grp
import ipaddress
import os
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from plugins.modules import tls_certificates

WANTED = {"name": "host", "common_name": "web1", "sans": ["DNS:web1", "IP:192.0.2.1", "IP:2001:DB8::1"]}
GROUP = grp.getgrgid(os.getgid()).gr_name


class CertificateAuthority:
    """A certificate authority, and the certificates it issues."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        self.certificate = self.sign(self.subject, self.key.public_key(), [], 0, 3650)

    def sign(
        self, subject: x509.Name, key: Any, sans: list[x509.GeneralName], age: float, days: float
    ) -> Any:
        begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            x509.CertificateBuilder(self.subject, subject, key, x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=days))
            .add_extension(identifier, critical=False)
        )
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, directory: Path, age: float = 0, days: float = 90) -> None:
        """Write a key and a certificate as WANTED, issued `age` days ago for `days` days."""
        key = ec.generate_private_key(ec.SECP256R1())
        sans: list[x509.GeneralName] = [x509.DNSName("web1")]
        sans += [x509.IPAddress(ipaddress.ip_address(text)) for text in ("192.0.2.1", "2001:db8::1")]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web1")])
        certificate = self.sign(subject, key.public_key(), sans, age, days)
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (directory / "host.crt").write_bytes(certificate.public_bytes(pem))
        (directory / "host.key").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        (directory / "host.key").chmod(0o640)


@pytest.fixture
def ca() -> CertificateAuthority:
    """Return a new CA."""
    return CertificateAuthority()


def reason(directory: Path, ca: CertificateAuthority, since: int = 0, **changes: Any) -> str | None:
    """Return why the certificate is due."""
    try:
        tls_certificates.inspect(directory, {**WANTED, **changes}, ca.certificate, GROUP, since)
    except tls_certificates.DueError as due:
        return str(due)
    return None


@pytest.mark.parametrize(("days", "age"), [(90, 44.9), (3, 1.4), (0.01, 0.004)])
def test_a_certificate_with_half_of_its_lifetime_left_stays(
    tmp_path: Path, ca: CertificateAuthority, days: float, age: float
) -> None:
    ca.issue(tmp_path, age, days)
    assert reason(tmp_path, ca) is None


@pytest.mark.parametrize(("days", "age"), [(90, 45.1), (3, 1.6), (0.01, 0.006), (90, 91)])
def test_a_certificate_with_less_is_due(
    tmp_path: Path, ca: CertificateAuthority, days: float, age: float
) -> None:
    ca.issue(tmp_path, age, days)
    assert reason(tmp_path, ca) == "less than half of its lifetime is left"


def test_a_missing_certificate_is_due(tmp_path: Path, ca: CertificateAuthority) -> None:
    assert reason(tmp_path, ca) == "missing"


@pytest.mark.parametrize(
    "changes",
    [{"common_name": "web2"}, {"sans": ["DNS:web1"]}, {"sans": [*WANTED["sans"], "DNS:web1.example.com"]}],
)
def test_other_names_are_due(tmp_path: Path, ca: CertificateAuthority, changes: dict[str, Any]) -> None:
    ca.issue(tmp_path)
    assert reason(tmp_path, ca, **changes) == "subject or SANs differ"


def test_another_ca_of_the_same_name_is_due(tmp_path: Path, ca: CertificateAuthority) -> None:
    ca.issue(tmp_path)
    assert reason(tmp_path, CertificateAuthority()) == "another CA signed it"


def test_a_key_of_another_certificate_is_due(tmp_path: Path, ca: CertificateAuthority) -> None:
    ca.issue(tmp_path)
    certificate = (tmp_path / "host.crt").read_bytes()
    ca.issue(tmp_path)
    (tmp_path / "host.crt").write_bytes(certificate)
    assert reason(tmp_path, ca) == "the key does not match the certificate"


@pytest.mark.parametrize("name", ["host.crt", "host.key"])
def test_a_truncated_file_is_due(tmp_path: Path, ca: CertificateAuthority, name: str) -> None:
    ca.issue(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    assert reason(tmp_path, ca) == "unreadable"


def test_a_world_readable_key_is_due(tmp_path: Path, ca: CertificateAuthority) -> None:
    ca.issue(tmp_path)
    (tmp_path / "host.key").chmod(0o644)
    assert reason(tmp_path, ca) == "the key's permissions differ"


def test_a_key_of_a_group_that_does_not_exist_yet_is_due(tmp_path: Path, ca: CertificateAuthority) -> None:
    ca.issue(tmp_path)
    assert reason(tmp_path, ca, group="no-such-group") == "the key's permissions differ"


def test_a_rotation_issues_each_certificate_once(tmp_path: Path, ca: CertificateAuthority) -> None:
    begun, hour = int(time.time()) - 5, 1 / 24
    ca.issue(tmp_path, age=hour + 10 / 86400)
    assert reason(tmp_path, ca, since=begun) == "it is being rotated"
    ca.issue(tmp_path, age=hour)
    # The host's clock does not count.
    os.utime(tmp_path / "host.crt", (begun - 600, begun - 600))
    assert reason(tmp_path, ca, since=begun) is None
