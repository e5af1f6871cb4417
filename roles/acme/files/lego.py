"""Run lego for one CA."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from certs import AcmeError, Pair, Wanted
from files import write_atomically

# DNS providers may need minutes to publish a record.
SECONDS = 900
# How often an account is registered while the CA refuses the nonce.
NONCES = 5
# What CAs say about an account that is closed.
CLOSED = re.compile(r"account.*(deactivated|revoked)", re.IGNORECASE)


def explain(output: str) -> str:
    """Return what lego said about a failure, without its progress, in one line."""
    lines = [re.sub(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ", "", line) for line in output.splitlines()]
    said = [line.strip() for line in lines if line.strip() and not line.startswith("[INFO]")]
    starts = [
        n for n, line in enumerate(said) if line.startswith(("Could not", "error:")) or "acme: error" in line
    ]
    message = " ".join(said[starts[0] if starts else -3 :])[:600] or "lego failed without a message"
    return f"{message}. Set acme_account to another label" if CLOSED.search(message) else message


class Lego:
    """Runs lego for one CA with the environment's account."""

    def __init__(
        self,
        authority: Mapping[str, Any],
        settings: Mapping[str, Any],
        secrets: Mapping[str, Any],
        state: Path,
    ) -> None:
        self.authority = authority
        self.settings = settings
        self.secrets = secrets
        self.state = state
        self.home = state / "lego" / authority["name"]
        server = urlsplit(authority["directory_url"]).netloc.replace(":", "_")
        self.account = self.home / "accounts" / server / settings["email"]

    def environment(self) -> dict[str, str]:
        """Return the environment of lego: the operator's variables and the CA's own root certificate."""
        trust = self.authority.get("ca_certificate")
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.state),
            **self.secrets.get("environment", {}),
            **({"LEGO_CA_CERTIFICATES": trust, "LEGO_CA_SYSTEM_CERT_POOL": "true"} if trust else {}),
        }

    def use_account(self) -> Path:
        """Give lego the account's key, and return the file with its registration."""
        file: Path = self.account / "keys" / f"{self.settings['email']}.key"
        registration: Path = self.account / "account.json"
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists() or file.read_text() != self.secrets["account_key"]:
            registration.unlink(missing_ok=True)
            write_atomically(file, self.secrets["account_key"], 0o600)
        if self.authority.get("eab_key_id") and not registration.exists():
            write_atomically(registration, json.dumps(self.register()), 0o600)
        return registration

    def register(self) -> dict[str, Any]:
        """Register the account with an external account binding, whose key lego takes as an argument only."""
        # Installed only for a CA that asks for a binding.
        import josepy
        from acme import client, messages

        key = josepy.JWK.load(self.secrets["account_key"].encode())
        if trust := self.authority.get("ca_certificate"):
            os.environ["REQUESTS_CA_BUNDLE"] = trust
        try:
            network = client.ClientNetwork(key, alg=josepy.ES256)
            directory = client.ClientV2.get_directory(self.authority["directory_url"], network)
            binding = messages.ExternalAccountBinding.from_data(
                key.public_key(),
                self.authority["eab_key_id"],
                self.secrets["eab"][self.authority["name"]],
                directory,
            )
            new = messages.NewRegistration.from_data(
                email=self.settings["email"], terms_of_service_agreed=True, external_account_binding=binding
            )
            uri = self.account_uri(client.ClientV2(directory, network).new_account, new)
        except Exception as error:
            raise AcmeError(f"the account could not be registered: {error}"[:600]) from error
        return {"email": self.settings["email"], "registration": {"body": {"status": "valid"}, "uri": uri}}

    def account_uri(self, new_account: Callable[[Any], Any], registration: Any) -> str:
        """Return the URI of a new account, or of the one that the key has already.

        A CA may refuse a nonce that it has just given (RFC 8555, 6.5). The library asks once more only.
        """
        from acme import errors, messages

        refused = 0
        while True:
            try:
                return str(new_account(registration).uri)
            except errors.ConflictError as known:
                return str(known.location)
            except messages.Error as error:
                refused += 1
                if error.code != "badNonce" or refused == NONCES:
                    raise

    def command(self, wanted: Wanted) -> list[str]:
        """Return the command that issues a certificate."""
        words = ["lego", "--accept-tos", "--email", self.settings["email"], "--path", str(self.home)]
        words += ["--server", self.authority["directory_url"], "--key-type", wanted.key_type]
        # Without it lego refuses the CA, although the account is registered.
        words += ["--eab"] if "eab_key_id" in self.authority else []
        if wanted.challenge == "dns":
            words += ["--dns", self.settings["dns_provider"]]
            words += [word for place in self.settings["dns_resolvers"] for word in ("--dns.resolvers", place)]
            # The CA asks the authoritative servers itself; a host with resolvers of its own may see others.
            words += [] if self.settings["dns_check"] else ["--dns.disable-cp"]
        else:
            # Nginx answers challenges from the account's thumbprint, so the files are for lego only.
            words += ["--http", "--http.webroot", str(self.state / "challenges")]
        return [*words, *(f"--domains={name}" for name in wanted.names), "run"]

    def obtain(self, wanted: Wanted) -> Pair:
        """Return a new certificate; raise AcmeError if the CA does not issue it."""
        registration = self.use_account()
        (self.state / "challenges").mkdir(exist_ok=True)
        output = self.run(wanted)
        if output and "accountDoesNotExist" in output:
            # The CA has forgotten the account, or it is another CA below the same URL.
            registration.unlink(missing_ok=True)
            self.use_account()
            output = self.run(wanted)
        if output is not None:
            raise AcmeError(explain(output))
        folder = self.home / "certificates"
        stem = wanted.names[0].replace("*", "_")
        pair = Pair((folder / f"{stem}.crt").read_text(), (folder / f"{stem}.key").read_text())
        shutil.rmtree(folder)
        return pair

    def run(self, wanted: Wanted) -> str | None:
        """Run lego; return its output if it fails."""
        try:
            done = subprocess.run(
                self.command(wanted),
                env=self.environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"error: the CA did not answer for {SECONDS} seconds"
        return done.stderr + done.stdout if done.returncode else None
