"""The steps that replace a secret in the vault of an environment, and what each changes."""

from __future__ import annotations

import datetime
import json
import re
import secrets
import string
import time
from collections.abc import Mapping

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# Present and other value of each secret: both are accepted until a rotation ends. A role of Postgres accepts
# one: while it changes, the service tries both, and the owner's changes together with its file.
PAIRS: Mapping[str, Mapping[str, str]] = {
    "ca": {"tls_ca_certificate": "tls_other_ca_certificate", "tls_ca_key": "tls_other_ca_key"},
    "leaf": {},
    "redis": {"secret_redis_app_password": "rotation_redis_app_password"},
    "database": {
        "secret_database_app_password": "rotation_database_app_password",
        "secret_database_owner_password": "rotation_database_owner_password",
    },
    "signing_key": {"secret_key": "rotation_secret_key"},
}
LETTERS = string.ascii_letters + string.digits
CA_DAYS = 3650


class RotationError(Exception):
    """The step is not possible; the message is a sentence for the operator."""


class Vault:
    """The text of a vault: variables at the top level, with comments that stay."""

    def __init__(self, text: str) -> None:
        self.text = text.rstrip("\n") + "\n"

    def _find(self, name: str) -> re.Match[str] | None:
        return re.search(rf"^{name}:(.*\n(?:[ \t]+.*\n|\n(?=[ \t]))*)", self.text, re.MULTILINE)

    def get(self, name: str) -> str:
        """Return a variable's value as text; empty if there is none."""
        found = self._find(name)
        try:
            value = yaml.safe_load(found[0])[name] if found else None
        except yaml.YAMLError:  # Its message would show the secret.
            raise RotationError(f"{name} cannot be read: write it as plain YAML, without a tag.") from None
        return "" if value is None else str(value)

    def set(self, name: str, value: str | int) -> None:
        """Set a variable to a number, a line or several lines."""
        content = f"{name}: {json.dumps(value)}\n"  # a YAML scalar, too
        if isinstance(value, str) and "\n" in value:
            content = f"{name}: |\n" + "".join(f"  {line}\n" for line in value.splitlines())
        found = self._find(name)
        if found:
            self.text = self.text[: found.start()] + content + self.text[found.end() :]
        else:
            self.text += content


def make_ca(name: str, now: datetime.datetime) -> tuple[str, str]:
    """Return certificate and key of a new CA, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Programs that look a CA up by its name must not find the one before.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {now:%Y-%m-%d %H:%M:%S}")])
    usage = {"key_cert_sign": True, "crl_sign": True}
    unused = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "encipher_only", "decipher_only"),
    )
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder(subject, subject, public, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage, **dict.fromkeys(unused, False)), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem).decode(), private.decode()


def make(kind: str, environment: str) -> dict[str, str]:
    """Return new values for the secrets of a kind, by their present names."""
    if kind == "ca":
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        return dict(zip(PAIRS["ca"], make_ca(f"Fastmetal {environment} CA", now), strict=True))
    if kind == "signing_key":
        return {"secret_key": secrets.token_hex(32)}
    return {name: "".join(secrets.choice(LETTERS) for _ in range(48)) for name in PAIRS[kind]}


def begin(vault: Vault, kind: str, environment: str) -> None:
    """Accept new values beside the present ones, unless a rotation that was interrupted has begun."""
    if vault.get(f"rotation_{kind}"):
        return
    # Without the former value in the vault it could not stay valid beside the new one.
    for name in PAIRS[kind]:
        if not vault.get(name):
            raise RotationError(f"{name} is not in vault.yml of {environment}: put it there.")
    for name, value in make(kind, environment).items():
        vault.set(PAIRS[kind][name], value)
    if kind == "leaf":
        vault.set("tls_issue_since", int(time.time()))
    vault.set(f"rotation_{kind}", "begun")


def switch(vault: Vault, kind: str) -> None:
    """Use the new values, and accept the former ones."""
    if vault.get(f"rotation_{kind}") != "begun":
        return
    for name, other in PAIRS[kind].items():
        present, new = vault.get(name), vault.get(other)
        vault.set(name, new)
        vault.set(other, present)
    vault.set(f"rotation_{kind}", "switched")


def retired_at(vault: Vault, overlap: int) -> int:
    """Return when the former signing key may be refused, in seconds since 1970; 0 before its overlap."""
    state = vault.get("rotation_signing_key").split()
    return int(state[1]) + overlap if state[:1] == ["retiring"] else 0


def end(vault: Vault, kind: str, overlap: int) -> None:
    """Accept the new values only; the former signing key stays valid for the overlap."""
    if not vault.get(f"rotation_{kind}").startswith(("switched", "retiring")):
        return
    if kind == "signing_key":
        # Not from the switch on: an interrupted run has not given all services the new key.
        if not retired_at(vault, overlap):
            vault.set("rotation_signing_key", f"retiring {int(time.time())}")
        if time.time() < retired_at(vault, overlap):
            return
    for other in PAIRS[kind].values():
        vault.set(other, "")
    if kind == "leaf":
        vault.set("tls_issue_since", 0)
    vault.set(f"rotation_{kind}", "")


def rotate(text: str, kinds: list[str], step: str, environment: str, overlap: int) -> tuple[str, str]:
    """Return the text of the vault after a step, and a message if the former signing key stays valid.

    A step that was taken already changes nothing, so that an interrupted run can be repeated.

    overlap: Seconds for which tokens of the former signing key stay valid, at least.

    Raises RotationError if the step is not possible.
    """
    vault = Vault(text)
    for kind in kinds:
        if step == "begin":
            begin(vault, kind, environment)
        elif step == "switch":
            switch(vault, kind)
        else:
            end(vault, kind, overlap)
    until = retired_at(vault, overlap) if step == "end" and "signing_key" in kinds else 0
    if not until:
        return vault.text, ""
    moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime(until))
    return vault.text, (
        f"Tokens of the former key are valid until {moment} UTC: then run again with -e what=signing_key."
    )
