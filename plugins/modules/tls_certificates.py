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
    does not match, when subject, SANs or CA differ, or when less than half of its lifetime is left.
author: Fastmetal
options:
  directory: {description: The directory of the certificates and keys., type: path, required: true}
  authorities:
    description: The certificates (PEM) of the signing CAs by role; that of server certificates is C("").
    type: dict
    required: true
  bundles:
    description: "The files of trusted CAs, <name>.crt, with their content."
    type: dict
    required: true
  key_group: {description: The group that can read the keys., type: str, required: true}
  since:
    description: Certificates issued before this moment, in seconds since 1970, are due.
    type: int
    default: 0
  certificates:
    description: The certificates that the host must have.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: The files are <name>.crt and <name>.key., type: str, required: true}
      common_name: {description: The subject's common name., type: str, required: true}
      sans: {description: "SANs, as DNS:name or IP:address.", type: list, elements: str, required: true}
      role: {description: The client's role; empty for a server., type: str, default: ''}
      group: {description: The group that can read the key instead of O(key_group)., type: str}
      reload_units: {description: Ignored; for the role., type: list, elements: str, default: []}
"""

RETURN = r"""
due: {description: "The certificates to issue, each with name and reason.", type: list, returned: always}
bundles_due: {description: Bundles that must be written., type: list, elements: str, returned: always}
"""

EXAMPLES = r"""
- name: Find the certificates to issue
  fastmetal.metal.tls_certificates:
    directory: /etc/fastmetal/tls
    authorities: {"": "{{ tls_ca_certificate }}"}
    bundles: {ca: "{{ tls_ca_certificate }}"}
    key_group: ssl-cert
    certificates:
      - {name: host, common_name: web1, sans: ["DNS:web1", "IP:192.0.2.1"]}
"""

KEY_MODE = 0o640
# roles/tls/tasks/issue.yml makes certificates valid from an hour before their issue.
BACKDATED_SECONDS = 3600


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


def has_group(number: int, name: str) -> bool:
    """Return whether a group has the name; one that does not exist has none."""
    try:
        return grp.getgrnam(name).gr_gid == number
    except KeyError:
        return False


def inspect(directory: Path, spec: dict[str, Any], ca: Any, key_group: str, since: int = 0) -> None:
    """Raise DueError if the certificate must be issued."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import NameOID

    key_file, certificate_file = directory / f"{spec['name']}.key", directory / f"{spec['name']}.crt"
    if not key_file.is_file() or not certificate_file.is_file():
        raise DueError("missing")
    status = key_file.stat()
    if stat.S_IMODE(status.st_mode) != KEY_MODE or not has_group(
        status.st_gid, spec.get("group") or key_group
    ):
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
    if end - time.time() < (end - begin) / 2:
        raise DueError("less than half of its lifetime is left")
    # Not the file's time: `since` is of the control node's clock, as is the certificate.
    if begin + BACKDATED_SECONDS < since:
        raise DueError("it is being rotated")


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
        "role": {"type": "str", "default": ""},
        "group": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "authorities": {"type": "dict", "required": True},
            "bundles": {"type": "dict", "required": True},
            "key_group": {"type": "str", "required": True, "no_log": False},
            "since": {"type": "int", "default": 0},
            "certificates": {"type": "list", "elements": "dict", "required": True, "options": options},
        },
        supports_check_mode=True,
    )
    directory, certificates = Path(module.params["directory"]), module.params["certificates"]
    bundles_due = [
        name
        for name, content in module.params["bundles"].items()
        if not (file := directory / f"{name}.crt").is_file() or file.read_text() != content
    ]
    due = []
    try:
        authorities = {role: load_ca(pem) for role, pem in module.params["authorities"].items()}
    except ImportError:
        if not module.check_mode:
            raise
        # In check mode on a bare host cryptography is not installed yet.
        due = [{"name": spec["name"], "reason": "missing"} for spec in certificates]
    else:
        for spec in certificates:
            try:
                inspect(
                    directory,
                    spec,
                    authorities[spec["role"]],
                    module.params["key_group"],
                    module.params["since"],
                )
            except DueError as reason:
                due.append({"name": spec["name"], "reason": str(reason)})
    module.exit_json(due=due, bundles_due=bundles_due)


if __name__ == "__main__":
    main()
