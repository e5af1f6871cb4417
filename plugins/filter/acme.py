"""Work out the certificates of an ACME CA and the account that asks for them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.fastmetal.metal.plugins.filter.wiring import is_address, merge_entries
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

DOCUMENTATION = r"""
name: acme_certificates
short_description: Work out one certificate for each service
description:
  - Returns the certificates by name. Each service has one for its names; so have the operators' tools.
  - A name is in one certificate only, that of the first service that has it.
author: Fastmetal
positional: names, console_names
options:
  _input: {description: The entries of the services., type: dict, required: true}
  names: {description: Host names of each service., type: dict, required: true}
  console_names: {description: "Names of the operators' tools.", type: list, elements: str, required: true}
"""

EXAMPLES = r"""
acme_base_certificates: >-
  {{ __services | fastmetal.metal.acme_certificates(__service_names, ['ops.example.com']) }}
"""

RETURN = r"""
_value: {description: "The certificates, each with names.", type: dict}
"""

# The order of the group P-256, less one: a private key is a number from 1 to this.
KEYS = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632550
LIVE = "/var/lib/fastmetal-acme/live"
# Let's Encrypt's limit.
MAX_NAMES = 100


def acme_certificates(
    services: Mapping[str, Mapping[str, Any]], names: Mapping[str, list[str]], console_names: Iterable[str]
) -> dict[str, dict[str, list[str]]]:
    """Return one certificate for each service, and one for the operators' tools if they have other names."""
    owners: dict[str, str] = {}
    for service, own in names.items():
        for name in own:
            owners.setdefault(name, service)
    for service, entry in services.items():
        for name in (entry.get("redirect_names") or []) if names[service] else []:
            # Nginx redirects it in one server with others that have the same target.
            owners.setdefault(name, owners[names[service][0]])
    for name in console_names:
        owners.setdefault(name, "consoles")
    found: dict[str, dict[str, list[str]]] = {}
    for name, owner in owners.items():
        found.setdefault(owner, {"names": []})["names"].append(name)
    return found


def acme_files(base: Mapping[str, Any], own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the files of each certificate for Nginx; none on hosts whose base has no certificate."""
    return [
        {
            "names": certificate["names"],
            "certificate": f"{LIVE}/{certificate['name']}/fullchain.pem",
            "key": f"{LIVE}/{certificate['name']}/privkey.pem",
        }
        for certificate in (merge_entries(base, own) if base else [])
    ]


def acme_account_key(secret: str, account: str) -> str:
    """Return the private key (PEM) of an account at CAs, derived from a secret and the account's label."""
    digest = hashlib.pbkdf2_hmac(
        "sha256", secret.encode(), f"acme account {account}".encode(), 1000, dklen=48
    )
    key = ec.derive_private_key(int.from_bytes(digest, "big") % KEYS + 1, ec.SECP256R1())
    # lego reads only the traditional form.
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def acme_thumbprint(key: str) -> str:
    """Return the thumbprint (RFC 7638) of an account's key, with which any edge can answer its challenges."""
    private = serialization.load_pem_private_key(key.encode(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        message = "acme_account_key is not a key of the curve P-256"
        raise TypeError(message)
    point = private.public_key().public_numbers()
    x, y = (encoded(number.to_bytes(32, "big")) for number in (point.x, point.y))
    form = json.dumps({"crv": "P-256", "kty": "EC", "x": x, "y": y}, separators=(",", ":"))
    return encoded(hashlib.sha256(form.encode()).digest())


def encoded(content: bytes) -> str:
    """Return bytes in base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def acme_faults(certificates: Iterable[Mapping[str, Any]], challenge: str) -> list[str]:
    """Return a sentence for each certificate that no CA would issue.

    challenge: That of entries without one.
    """
    return [fault for entry in certificates for fault in faults(entry, challenge)]


def faults(certificate: Mapping[str, Any], challenge: str) -> Iterator[str]:
    """Yield the faults of one certificate."""
    where = f"acme_certificates.{certificate['name']}"
    names = certificate.get("names") or []
    if not names:
        yield f"{where}.names is empty: give it at least one host name."
    if odd := [name for name in names if is_address(name) or "." not in name]:
        yield (
            f"{where} has {', '.join(odd)}, and a public CA certifies host names with a domain only:"
            " set public_name, or names of the service."
        )
    wild = [name for name in names if "*" in name]
    if bad := [name for name in wild if not name.startswith("*.") or "*" in name[1:]]:
        yield f"{where} has {', '.join(bad)}: a wildcard is a whole first label, such as *.example.com."
    if wild and certificate.get("challenge", challenge) != "dns":
        yield f"{where} has {', '.join(wild)}: set its challenge to dns, as wildcards need it."
    if len(names) > MAX_NAMES:
        yield f"{where} has {len(names)} names, and CAs take {MAX_NAMES}: divide them into several services."


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        functions = (acme_certificates, acme_files, acme_account_key, acme_thumbprint, acme_faults)
        return {function.__name__: function for function in functions}
