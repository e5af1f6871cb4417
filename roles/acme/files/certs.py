"""Judge certificates: what they are for, and when they are due."""

from __future__ import annotations

import calendar
import dataclasses
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

HOUR, DAY = 3600, 86400
# The share of its lifetime after which a certificate is renewed; the rest is for outages of the CA.
RENEWAL = 2 / 3


class AcmeError(Exception):
    """A certificate could not be issued; the message is for operators."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A certificate as configured."""

    name: str
    names: tuple[str, ...]
    challenge: str
    key_type: str

    @property
    def probe(self) -> str:
        """Return a host name that the certificate is for."""
        return self.names[0].replace("*", "probe")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A certificate chain and its key."""

    chain: str
    key: str

    @property
    def leaf(self) -> x509.Certificate:
        """Return the server's certificate."""
        return x509.load_pem_x509_certificate(self.chain.encode())

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 digest of the server's certificate."""
        return self.leaf.fingerprint(hashes.SHA256()).hex()


def validity(leaf: x509.Certificate) -> tuple[float, float]:
    """Return the begin and the end of a certificate in seconds since 1970."""
    if hasattr(leaf, "not_valid_before_utc"):
        return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    # cryptography 38 of Debian 12 has only these, in UTC.
    begin, end = leaf.not_valid_before, leaf.not_valid_after
    return float(calendar.timegm(begin.timetuple())), float(calendar.timegm(end.timetuple()))


def renewal_time(leaf: x509.Certificate) -> float:
    """Return when a certificate is to be renewed, in seconds since 1970."""
    begin, end = validity(leaf)
    return begin + RENEWAL * (end - begin)


def retry_seconds(failed: int, lifetime: float) -> float:
    """Return how long to wait after failed attempts in a row, which CAs limit.

    lifetime: That of the issued certificate in seconds; 0 before the first one, which the timer's next run
    tries again.
    """
    return min(HOUR * 2 ** (failed - 1), lifetime / 36, DAY) if failed else 0


def key_type(leaf: x509.Certificate) -> str:
    """Return the type of a certificate's key in lego's words."""
    key = leaf.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ec{key.curve.key_size}"
    return f"rsa{key.key_size}" if isinstance(key, rsa.RSAPublicKey) else "another"


def dns_names(leaf: x509.Certificate) -> set[str]:
    """Return the host names of a certificate."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return set(found.get_values_for_type(x509.DNSName))


def reason_to_issue(
    wanted: Wanted, leaf: x509.Certificate, entry: Mapping[str, Any], urls: list[str], now: float
) -> str:
    """Return why a certificate is due, or an empty text.

    entry: What the state says about it. urls: Directory URLs of the configured CAs.
    """
    if entry.get("fingerprint") != leaf.fingerprint(hashes.SHA256()).hex():
        return "no certificate has been issued yet"
    if entry.get("directory_url") not in urls:
        return "it is from a CA that acme_authorities no longer has"
    if dns_names(leaf) != set(wanted.names):
        return "its names have changed"
    if key_type(leaf) != wanted.key_type:
        return "its type of key has changed"
    return "two thirds of its lifetime have passed" if now >= renewal_time(leaf) else ""


def public_bytes(key: Any) -> bytes:
    """Return a public key as bytes, to compare it."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(serialization.Encoding.DER, form))


def judge(pair: Pair, wanted: Wanted, now: float) -> None:
    """Raise AcmeError if Nginx or clients would refuse the pair."""
    key = serialization.load_pem_private_key(pair.key.encode(), None)
    if public_bytes(key.public_key()) != public_bytes(pair.leaf.public_key()):
        raise AcmeError("the CA returned a certificate of another key")
    if missing := set(wanted.names) - dns_names(pair.leaf):
        raise AcmeError(f"the CA returned a certificate without {', '.join(sorted(missing))}")
    begin, end = validity(pair.leaf)
    if not begin - HOUR < now < end:
        raise AcmeError("the CA returned a certificate that is not valid now: compare the clocks")
