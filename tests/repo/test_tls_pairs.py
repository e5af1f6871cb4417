"""When the role tls issues a pair anew."""

from __future__ import annotations

import datetime
import grp
import importlib.util
import ipaddress
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

MODULE = Path(__file__).resolve().parents[2] / "roles/tls/library/tls_pairs.py"
WANTED = {"name": "host", "common_name": "web1", "sans": ["DNS:web1", "IP:192.0.2.1", "IP:2001:DB8::1"]}
GROUP = grp.getgrgid(os.getgid()).gr_name

specification = importlib.util.spec_from_file_location("tls_pairs", MODULE)
assert specification is not None
assert specification.loader is not None
tls_pairs = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tls_pairs)


class Authority:
    """An authority for tests, and what it issues."""

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
        """Write a pair as WANTED, issued a while ago."""
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
def authority() -> Authority:
    """Return a new authority."""
    return Authority()


def reason(directory: Path, authority: Authority, **changes: Any) -> str | None:
    """Return why the pair is due."""
    try:
        tls_pairs.inspect(directory, {**WANTED, **changes}, authority.certificate, GROUP)
    except tls_pairs.DueError as due:
        return str(due)
    return None


@pytest.mark.parametrize(("days", "age"), [(90, 59.9), (3, 1.9), (0.01, 0.006)])
def test_a_pair_with_a_third_of_its_life_left_stays(
    tmp_path: Path, authority: Authority, days: float, age: float
) -> None:
    authority.issue(tmp_path, age, days)
    assert reason(tmp_path, authority) is None


@pytest.mark.parametrize(("days", "age"), [(90, 60.1), (3, 2.1), (0.01, 0.007), (90, 91)])
def test_a_pair_with_less_is_due(tmp_path: Path, authority: Authority, days: float, age: float) -> None:
    authority.issue(tmp_path, age, days)
    assert reason(tmp_path, authority) == "less than a third of its life is left"


def test_a_missing_pair_is_due(tmp_path: Path, authority: Authority) -> None:
    assert reason(tmp_path, authority) == "missing"


@pytest.mark.parametrize(
    "changes",
    [{"common_name": "web2"}, {"sans": ["DNS:web1"]}, {"sans": [*WANTED["sans"], "DNS:web1.example.com"]}],
)
def test_other_names_are_due(tmp_path: Path, authority: Authority, changes: dict[str, Any]) -> None:
    authority.issue(tmp_path)
    assert reason(tmp_path, authority, **changes) == "other names"


def test_another_authority_of_the_same_name_is_due(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path)
    assert reason(tmp_path, Authority()) == "another authority"


def test_a_key_of_another_pair_is_due(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path)
    certificate = (tmp_path / "host.crt").read_bytes()
    authority.issue(tmp_path)
    (tmp_path / "host.crt").write_bytes(certificate)
    assert reason(tmp_path, authority) == "key and certificate do not belong together"


@pytest.mark.parametrize("name", ["host.crt", "host.key"])
def test_a_torn_file_is_due(tmp_path: Path, authority: Authority, name: str) -> None:
    authority.issue(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    assert reason(tmp_path, authority) == "unreadable"


def test_an_open_key_is_due(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path)
    (tmp_path / "host.key").chmod(0o644)
    assert reason(tmp_path, authority) == "the key's permissions"
