#!/usr/bin/python3
"""Look at all key pairs of a host at once and say which ones have to be issued, and why."""

from __future__ import annotations

import calendar
import grp
import ipaddress
import stat
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: tls_pairs
short_description: Tell which key pairs have to be issued
description:
  - Changes nothing. A pair is due when a file is missing, unreadable or open to others, when key and
    certificate do not belong together, when the certificate's names or authority are others than wanted,
    or when less than a third of its life is left.
options:
  directory: {description: Where the pairs lie., type: path, required: true}
  authority: {description: The certificate (PEM) of the authority that signs., type: str, required: true}
  key_group: {description: The group that may read the keys., type: str, required: true}
  certificates:
    description: The wanted pairs.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: The files are <name>.crt and <name>.key., type: str, required: true}
      common_name: {description: The subject., type: str, required: true}
      sans: {description: "Names as DNS:name or IP:address.", type: list, elements: str, required: true}
      reload_units: {description: Not looked at., type: list, elements: str, default: []}
"""

RETURN = r"""
due: {description: "The pairs to issue, each with name and reason.", type: list, returned: always}
authority_due: {description: Whether ca.crt has to be written., type: bool, returned: always}
"""

KEY_MODE = 0o640


class DueError(Exception):
    """Why a pair has to be issued."""


def validity(certificate: Any) -> tuple[int, int]:
    """Return the first and the last second; releases before Debian 13 know only the naive attributes."""
    if hasattr(certificate, "not_valid_after_utc"):
        moments = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    else:
        moments = certificate.not_valid_before, certificate.not_valid_after
    begin, end = (calendar.timegm(moment.utctimetuple()) for moment in moments)
    return begin, end


def names(certificate: Any) -> set[str]:
    """Return the certificate's SANs in the role's own notation."""
    from cryptography import x509

    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {f"DNS:{name}" for name in found.get_values_for_type(x509.DNSName)} | {
        f"IP:{address}" for address in found.get_values_for_type(x509.IPAddress)
    }


def normal(san: str) -> str:
    """Write an address the one way that certificates do."""
    kind, _, value = san.partition(":")
    return f"IP:{ipaddress.ip_address(value)}" if kind == "IP" else san


def public_bytes(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def signed_by(certificate: Any, authority: Any) -> bool:
    """Tell whether the authority's current key signed the certificate."""
    from cryptography import x509

    extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public_key()).digest
    return bool(certificate.issuer == authority.subject and extension.key_identifier == identifier)


def inspect(directory: Path, wanted: dict[str, Any], authority: Any, key_group: str) -> None:
    """Raise DueError with the reason when the pair has to be issued."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import NameOID

    key_file, certificate_file = directory / f"{wanted['name']}.key", directory / f"{wanted['name']}.crt"
    if not key_file.is_file() or not certificate_file.is_file():
        raise DueError("missing")
    status = key_file.stat()
    if stat.S_IMODE(status.st_mode) != KEY_MODE or status.st_gid != grp.getgrnam(key_group).gr_gid:
        raise DueError("the key's permissions")
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        common_name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        current_names, current_authority = names(certificate), signed_by(certificate, authority)
    except (ValueError, TypeError, IndexError, x509.ExtensionNotFound):
        raise DueError("unreadable") from None
    if public_bytes(key.public_key()) != public_bytes(certificate.public_key()):
        raise DueError("key and certificate do not belong together")
    if common_name != wanted["common_name"] or current_names != {normal(san) for san in wanted["sans"]}:
        raise DueError("other names")
    if not current_authority:
        raise DueError("another authority")
    begin, end = validity(certificate)
    if end - time.time() < (end - begin) / 3:
        raise DueError("less than a third of its life is left")


def load_authority(pem: str) -> Any:
    """Return the authority's certificate; the import fails where the role has not installed the library."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem.encode())


def main() -> None:
    """Run the module."""
    pair = {
        "name": {"type": "str", "required": True},
        "common_name": {"type": "str", "required": True},
        "sans": {"type": "list", "elements": "str", "required": True},
        "reload_units": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "authority": {"type": "str", "required": True},
            "key_group": {"type": "str", "required": True, "no_log": False},
            "certificates": {"type": "list", "elements": "dict", "required": True, "options": pair},
        },
        supports_check_mode=True,
    )
    directory, wanted = Path(module.params["directory"]), module.params["certificates"]
    ca_file = directory / "ca.crt"
    authority_due = not ca_file.is_file() or ca_file.read_text() != module.params["authority"]
    due = []
    try:
        authority = load_authority(module.params["authority"])
    except ImportError:
        if not module.check_mode:
            raise
        # A bare host in check mode.
        due = [{"name": pair["name"], "reason": "missing"} for pair in wanted]
    else:
        for pair in wanted:
            try:
                inspect(directory, pair, authority, module.params["key_group"])
            except DueError as reason:
                due.append({"name": pair["name"], "reason": str(reason)})
    module.exit_json(due=due, authority_due=authority_due)


if __name__ == "__main__":
    main()
