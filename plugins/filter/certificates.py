"""Judge the operator's own certificate before a web server gets it."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

DOCUMENTATION = r"""
name: certificate_faults
short_description: Find reasons why clients would refuse a certificate
description:
  - Returns a sentence for each fault of a certificate chain in PEM, which has the server's certificate first.
  - Judged are the names, the dates, the order of the chain and, if it is given, the key.
author: Fastmetal
positional: where, names, key
options:
  _input: {description: The certificate chain., type: str, required: true}
  where: {description: The variable or file that has it, for the sentences., type: str, required: true}
  names: {description: Host names and addresses of the site., type: list, elements: str, required: true}
  key: {description: The private key in PEM., type: str, default: ''}
"""

EXAMPLES = r"""
__nginx_certificate_faults: >-
  {{ lookup('ansible.builtin.file', '/etc/ssl/shop.crt')
     | fastmetal.metal.certificate_faults('/etc/ssl/shop.crt', ['shop.example.com']) }}
"""

RETURN = r"""
_value: {description: The sentences., type: list, elements: str}
"""


def certificate_faults(chain: str, where: str, names: Iterable[str], key: str = "") -> list[str]:
    """Return a sentence for each reason why clients would refuse the certificate."""
    return list(_faults(chain.encode(), where, names, key.encode()))


def _faults(chain: bytes, where: str, names: Iterable[str], key: bytes) -> Iterator[str]:
    try:
        certificates = x509.load_pem_x509_certificates(chain)
    except ValueError:
        yield f"{where} has no certificate in PEM: give the full chain, the server's certificate first."
        return
    server = certificates[0]
    today = datetime.datetime.now(datetime.UTC)
    if server.not_valid_after_utc < today:
        yield f"The certificate in {where} expired on {server.not_valid_after_utc:%Y-%m-%d}: renew it."
    if server.not_valid_before_utc > today:
        yield f"The certificate in {where} is not valid before {server.not_valid_before_utc:%Y-%m-%d}."
    if missing := [name for name in names if not _covers(server, name)]:
        yield (
            f"The certificate in {where} is not for {', '.join(missing)}, but for"
            f" {', '.join(_names(server)) or 'no name'}: give one for every name of the site."
        )
    for certificate, issuer in pairwise(certificates):
        if not _issued(certificate, issuer):
            yield (
                f"The chain in {where} is out of order after {certificate.subject.rfc4514_string()}:"
                " write each certificate before that of its issuer, the server's first."
            )
            break
    if key:
        try:
            public = serialization.load_pem_private_key(key, None).public_key()
        except (TypeError, ValueError):
            yield f"The key of {where} is not an unencrypted private key in PEM."
            return
        if public != server.public_key():
            yield f"The key does not belong to the certificate in {where}: give the files of one certificate."


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _covers(certificate: x509.Certificate, name: str) -> bool:
    """Return whether a name or address is among the certificate's; a wildcard stands for one label."""
    known = {known.lower() for known in _names(certificate)}
    try:
        name = str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower() in known or f"*.{name.lower().partition('.')[2]}" in known
    return name in known


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {"certificate_faults": certificate_faults}
