#!/usr/bin/python3
"""Find the certificates of a host that must be issued."""

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
module: tls_certificates
short_description: Find the certificates that must be issued
description:
  - Checks all certificates of a host in one task and changes nothing.
  - A certificate is due when it or its key is missing or unreadable, when the key has other permissions or
    does not match, when subject, SANs or CA differ, or when less than a third of its lifetime is left.
author: Fastmetal
options:
  directory: {description: The directory of the certificates and keys., type: path, required: true}
  ca_certificate: {description: The certificate (PEM) of the signing CA., type: str, required: true}
  key_group: {description: The group that can read the keys., type: str, required: true}
  certificates:
    description: The certificates that the host must have.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: The files are <name>.crt and <name>.key., type: str, required: true}
      common_name: {description: The subject's common name., type: str, required: true}
      sans: {description: "SANs, as DNS:name or IP:address.", type: list, elements: str, required: true}
      reload_units: {description: Ignored; for the role., type: list, elements: str, default: []}
"""

RETURN = r"""
due: {description: "The certificates to issue, each with name and reason.", type: list, returned: always}
ca_due: {description: Whether ca.crt must be written., type: bool, returned: always}
"""

EXAMPLES = r"""
- name: Find the certificates to issue
  fastmetal.metal.tls_certificates:
    directory: /etc/fastmetal/tls
    ca_certificate: "{{ tls_ca_certificate }}"
    key_group: tls
    certificates:
      - {name: host, common_name: web1, sans: ["DNS:web1", "IP:192.0.2.1"]}
"""

KEY_MODE = 0o640


class DueError(Exception):
    """A certificate must be issued; the message is the reason."""


def validity(certificate: Any) -> tuple[int, int]:
    """Return the start and the end of the validity, in seconds since 1970."""
    # Debian 12 has a cryptography without the aware attributes, Debian 13 deprecates the naive ones.
    if hasattr(certificate, "not_valid_after_utc"):
        moments = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    else:
        moments = certificate.not_valid_before, certificate.not_valid_after
    begin, end = (calendar.timegm(moment.utctimetuple()) for moment in moments)
    return begin, end


def names(certificate: Any) -> set[str]:
    """Return the certificate's SANs as DNS:name or IP:address."""
    from cryptography import x509

    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {f"DNS:{name}" for name in found.get_values_for_type(x509.DNSName)} | {
        f"IP:{address}" for address in found.get_values_for_type(x509.IPAddress)
    }


def normalize(san: str) -> str:
    """Return a SAN with its IP address in canonical form."""
    kind, _, value = san.partition(":")
    return f"IP:{ipaddress.ip_address(value)}" if kind == "IP" else san


def public_bytes(key: Any) -> bytes:
    """Return a public key in DER form."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def signed_by(certificate: Any, ca: Any) -> bool:
    """Return whether the CA's current key signed the certificate."""
    from cryptography import x509

    extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca.public_key()).digest
    return bool(certificate.issuer == ca.subject and extension.key_identifier == identifier)


def inspect(directory: Path, spec: dict[str, Any], ca: Any, key_group: str) -> None:
    """Raise DueError if the certificate must be issued."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import NameOID

    key_file, certificate_file = directory / f"{spec['name']}.key", directory / f"{spec['name']}.crt"
    if not key_file.is_file() or not certificate_file.is_file():
        raise DueError("missing")
    status = key_file.stat()
    if stat.S_IMODE(status.st_mode) != KEY_MODE or status.st_gid != grp.getgrnam(key_group).gr_gid:
        raise DueError("the key's permissions differ")
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        common_name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        current_names, current_ca = names(certificate), signed_by(certificate, ca)
    except (ValueError, TypeError, IndexError, x509.ExtensionNotFound):
        raise DueError("unreadable") from None
    if public_bytes(key.public_key()) != public_bytes(certificate.public_key()):
        raise DueError("the key does not match the certificate")
    if common_name != spec["common_name"] or current_names != {normalize(san) for san in spec["sans"]}:
        raise DueError("subject or SANs differ")
    if not current_ca:
        raise DueError("another CA signed it")
    begin, end = validity(certificate)
    if end - time.time() < (end - begin) / 3:
        raise DueError("less than a third of its lifetime is left")


def load_ca(pem: str) -> Any:
    """Return the CA's certificate; raise ImportError until the role has installed cryptography."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem.encode())


def main() -> None:
    """Run the module."""
    options = {
        "name": {"type": "str", "required": True},
        "common_name": {"type": "str", "required": True},
        "sans": {"type": "list", "elements": "str", "required": True},
        "reload_units": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "ca_certificate": {"type": "str", "required": True},
            "key_group": {"type": "str", "required": True, "no_log": False},
            "certificates": {"type": "list", "elements": "dict", "required": True, "options": options},
        },
        supports_check_mode=True,
    )
    directory, certificates = Path(module.params["directory"]), module.params["certificates"]
    ca_file = directory / "ca.crt"
    ca_due = not ca_file.is_file() or ca_file.read_text() != module.params["ca_certificate"]
    due = []
    try:
        ca = load_ca(module.params["ca_certificate"])
    except ImportError:
        if not module.check_mode:
            raise
        # In check mode on a bare host cryptography is not installed yet.
        due = [{"name": spec["name"], "reason": "missing"} for spec in certificates]
    else:
        for spec in certificates:
            try:
                inspect(directory, spec, ca, module.params["key_group"])
            except DueError as reason:
                due.append({"name": spec["name"], "reason": str(reason)})
    module.exit_json(due=due, ca_due=ca_due)


if __name__ == "__main__":
    main()
