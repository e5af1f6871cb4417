"""The operator's certificate is judged before Nginx gets it."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from plugins.filter.certificates import certificate_faults
from tests.roles import Role

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM


class Issued:
    """A certificate and its key."""

    def __init__(
        self, name: str, issuer: Issued | None = None, start: int = -1, end: int = 9, **sans: Any
    ) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        signer = issuer or self
        builder = x509.CertificateBuilder(
            signer.name, self.name, self.key.public_key(), x509.random_serial_number()
        )
        builder = builder.not_valid_before(NOW + start * DAY).not_valid_after(NOW + end * DAY)
        names: list[x509.GeneralName] = [x509.DNSName(san) for san in sans.get("names", [name])]
        names += [x509.IPAddress(ipaddress.ip_address(san)) for san in sans.get("addresses", [])]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        self.pem = builder.sign(signer.key, hashes.SHA256()).public_bytes(PEM).decode()

    @property
    def private(self) -> str:
        """The key in PEM."""
        form = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(PEM, form, serialization.NoEncryption()).decode()


CA = Issued("CA", names=[])
SUB = Issued("sub CA", CA, names=[])
SHOP = Issued("shop.example", SUB, names=["shop.example", "*.shop.example"], addresses=["192.0.2.1"])
CHAIN = SHOP.pem + SUB.pem
NAMES = ["shop.example", "Grafana.shop.example", "192.0.2.1"]


@pytest.mark.parametrize("chain", [SHOP.pem, CHAIN, CHAIN + CA.pem], ids=["alone", "sub CA", "root"])
def test_a_sound_certificate(chain: str) -> None:
    assert certificate_faults(chain, "shop.crt", NAMES, SHOP.private) == []


@pytest.mark.parametrize(
    ("chain", "names", "key", "part"),
    [
        (CHAIN, ["shop.test"], "", "is not for shop.test, but for shop.example, *.shop.example, 192.0.2.1"),
        (CHAIN, ["a.b.shop.example"], "", "is not for a.b.shop.example, but for"),
        (CHAIN, ["192.0.2.2"], "", "is not for 192.0.2.2, but for"),
        (CA.pem, ["shop.example"], "", "is not for shop.example, but for no name: give one for every name"),
        (Issued("a", end=-0).pem, ["a"], "", f"in shop.crt expired on {NOW:%Y-%m-%d}: renew it."),
        (Issued("a", start=1).pem, ["a"], "", "in shop.crt is not valid before"),
        (
            SHOP.pem + CA.pem + SUB.pem,
            NAMES,
            "",
            "out of order after CN=shop.example: write each certificate",
        ),
        (CHAIN, NAMES, CA.private, "The key does not belong to the certificate in shop.crt"),
        (CHAIN, NAMES, "x", "The key of shop.crt is not an unencrypted private key in PEM."),
        ("x", NAMES, SHOP.private, "shop.crt has no certificate in PEM: give the full chain"),
    ],
)
def test_a_fault_gets_one_sentence(chain: str, names: list[str], key: str, part: str) -> None:
    (sentence,) = certificate_faults(chain, "shop.crt", names, key)
    assert part in sentence
    assert sentence.endswith(".")


def test_the_role_judges_the_operators_files(tmp_path: Path) -> None:
    """The names are those of the site and of consoles with a name of their own."""
    for name, text in {"shop.crt": CHAIN, "shop.key": SHOP.private}.items():
        (tmp_path / name).write_text(text)
    console = {"grafana": {"path": "/", "address": "127.0.0.1:3000", "server_name": "grafana.test"}}
    variables: dict[str, Any] = {
        "ansible_facts": {"distribution_release": "trixie"},
        "nginx_sites": {"api": {"upstreams": ["unix:/run/api/api.sock"]}},
        "nginx_tls": "files",
        "nginx_tls_certificate_source": str(tmp_path / "shop.crt"),
        "nginx_tls_key_source": str(tmp_path / "shop.key"),
    }
    assert Role("nginx", **variables, nginx_server_names=["shop.example"]).refusals() == []
    wrong = Role(
        "nginx", **variables, nginx_server_names=["shop.example", "x.test"], nginx_base_consoles=console
    )
    (sentence,) = wrong.refusals()
    assert f"The certificate in {tmp_path}/shop.crt is not for x.test, grafana.test, but for" in sentence
