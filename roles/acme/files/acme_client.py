#!/usr/bin/python3
"""Issue and renew the public certificates of this edge with lego.

`renew` is what the timer runs: it issues each certificate that is missing, has other names than
configured, or has lived for two thirds of its lifetime. `issue` runs the unit at once and prints the
result; `status` prints the state.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from certs import AcmeError, Pair, Wanted, judge, reason_to_issue, renewal_time, retry_seconds, validity
from cryptography.hazmat.primitives import serialization
from files import write_atomically
from lego import Lego

SETTINGS = Path("/etc/fastmetal/acme/settings.json")
STATE = Path("/var/lib/fastmetal-acme")
UNIT = "fastmetal-acme.service"
# Nginx may be restarting.
SERVED_SECONDS = 30


def obtain(wanted: Wanted, settings: Mapping[str, Any], secrets: Mapping[str, Any]) -> tuple[Pair, str]:
    """Return a new certificate and the directory URL of the first CA that issues it."""
    problems = []
    for authority in settings["authorities"]:
        try:
            pair = Lego(authority, settings, secrets, STATE).obtain(wanted)
            judge(pair, wanted, time.time())
        except (AcmeError, OSError, ValueError) as error:
            problems.append(f"{authority['name']}: {error}")
            continue
        return pair, authority["directory_url"]
    raise AcmeError("; ".join(problems))


def live(name: str) -> Path:
    """Return the directory that Nginx reads: a symlink to the placeholder or to an issued certificate."""
    return STATE / "live" / name


def install(name: str, pair: Pair) -> None:
    """Make Nginx' files those of the pair, certificate and key in one step; keep the last ones."""
    versions = STATE / "versions"
    folder = versions / f"{name}@{pair.fingerprint[:16]}"
    before = live(name).readlink().name if live(name).is_symlink() else ""
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "fullchain.pem", pair.chain)
    # The group of the directory, Nginx', may read it.
    write_atomically(folder / "privkey.pem", pair.key, 0o640)
    link = STATE / f"{name}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(f"../versions/{folder.name}")
    link.replace(live(name))
    for old in versions.glob(f"{name}@*"):
        if old.name not in {folder.name, before}:
            shutil.rmtree(old)


def served(address: str, name: str) -> bytes:
    """Return the certificate (DER) with which Nginx answers for a name."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((host.strip("[]"), int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        return connection.getpeercert(binary_form=True) or b""


def wait_until_served(address: str, wanted: Wanted, pair: Pair) -> None:
    """Raise AcmeError if Nginx does not answer with the certificate soon."""
    expected = pair.leaf.public_bytes(serialization.Encoding.DER)
    deadline = time.monotonic() + SERVED_SECONDS
    while True:
        try:
            if served(address, wanted.probe) == expected:
                return
        except OSError:
            pass  # Nginx may not have started yet.
        if time.monotonic() > deadline:
            raise AcmeError(
                f"Nginx does not serve the new certificate of {wanted.probe}: look at `nginx -t` and"
                " `journalctl -t nginx`, or run playbooks/edge.yml"
            )
        time.sleep(0.2)


class State:
    """What is known about each certificate, kept in a file that host metrics and status.yml read."""

    def __init__(self) -> None:
        self.file = STATE / "state.json"
        self.entries: dict[str, dict[str, Any]] = (
            json.loads(self.file.read_text()) if self.file.exists() else {}
        )

    def entry(self, name: str) -> dict[str, Any]:
        """Return the entry of a certificate."""
        zero = {"failed": 0, "failures": 0, "attempt": 0.0, "next": 0.0, "error": ""}
        return self.entries.setdefault(name, zero)

    def write(self) -> None:
        """Write the file."""
        write_atomically(self.file, json.dumps(self.entries, indent=2) + "\n")


def attempt(
    wanted: Wanted, settings: Mapping[str, Any], secrets: Mapping[str, Any], entry: dict[str, Any]
) -> bool:
    """Issue and install one certificate, record the result, and return whether that succeeded."""
    entry["attempt"] = time.time()
    try:
        pair, url = obtain(wanted, settings, secrets)
        install(wanted.name, pair)
        entry |= {"fingerprint": pair.fingerprint, "directory_url": url}
        print(f"<5>{wanted.name} ({', '.join(wanted.names)}) was issued by {url}", flush=True)
    except (AcmeError, OSError) as error:
        fail(wanted, entry, str(error))
        return False
    return True


def check(wanted: Wanted, settings: Mapping[str, Any], entry: dict[str, Any]) -> None:
    """Record whether Nginx serves the installed certificate, whose files it reads at each handshake."""
    try:
        wait_until_served(settings["served_address"], wanted, installed(wanted.name))
    except (AcmeError, OSError) as error:
        fail(wanted, entry, str(error))
        return
    entry |= {"failed": 0, "error": ""}


def fail(wanted: Wanted, entry: dict[str, Any], message: str) -> None:
    """Record a failed attempt."""
    entry |= {"failed": entry["failed"] + 1, "failures": entry["failures"] + 1, "error": message}
    print(f"<3>{wanted.name} ({', '.join(wanted.names)}) failed: {message}", flush=True)


def installed(name: str) -> Pair:
    """Return the certificate that Nginx has for a name: the placeholder before the first one is issued."""
    return Pair((live(name) / "fullchain.pem").read_text(), "")


def wanted_certificates(settings: Mapping[str, Any]) -> Iterator[Wanted]:
    """Yield the configured certificates."""
    for entry in settings["certificates"]:
        yield Wanted(entry["name"], tuple(entry["names"]), entry["challenge"], entry["key_type"])


def take_forced() -> set[str]:
    """Return the certificates that `issue` asks for; a request written from now on is for the next run."""
    taken = STATE / "forced.taken"
    try:
        (STATE / "forced").replace(taken)
    except FileNotFoundError:
        return set()
    names = set(taken.read_text().split())
    taken.unlink()
    return names


def renew(settings: Mapping[str, Any], secrets: Mapping[str, Any]) -> None:
    """Issue what is due; a failure is recorded, and the timer's next run tries again."""
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = State()
        forced = take_forced()
        urls = [authority["directory_url"] for authority in settings["authorities"]]
        for wanted in wanted_certificates(settings):
            entry, now = state.entry(wanted.name), time.time()
            reason = reason_to_issue(wanted, installed(wanted.name).leaf, entry, urls, now)
            if wanted.name in forced or (reason and now >= entry["next"]):
                unproven = attempt(wanted, settings, secrets, entry)
                # If this process is stopped from here on, the certificate is not issued again.
                state.write()
            else:
                unproven = bool(entry["failed"] and not reason)
            if unproven:
                check(wanted, settings, entry)
            leaf = installed(wanted.name).leaf
            due = reason_to_issue(wanted, leaf, entry, urls, time.time())
            begin, end = validity(leaf)
            lifetime = end - begin if entry.get("fingerprint") else 0
            again = entry["attempt"] + retry_seconds(entry["failed"], lifetime)
            entry["next"] = again if due or entry["failed"] else renewal_time(leaf)
            state.write()
        known = {wanted.name for wanted in wanted_certificates(settings)}
        state.entries = {name: entry for name, entry in state.entries.items() if name in known}
        state.write()


def forget(settings: Mapping[str, Any]) -> None:
    """Remove the keys of certificates that are no longer configured, once Nginx reads them no more."""
    known = {wanted.name for wanted in wanted_certificates(settings)}
    for link in (STATE / "live").glob("*"):
        if link.name not in known:
            link.unlink()
    for folder in (STATE / "versions").glob("*@*"):
        if folder.name.rpartition("@")[0] not in known:
            shutil.rmtree(folder)


def issue(settings: Mapping[str, Any], names: list[str]) -> int:
    """Run the unit now for certificates that are due, or for those of `names`; print one line each."""
    forget(settings)
    due = names or [name for name, reason in reasons(settings).items() if reason]
    if unknown := set(due) - {wanted.name for wanted in wanted_certificates(settings)}:
        print(f"no certificate has the name {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if not due:
        return 0
    before = State().entries
    # Also those that a failed attempt has put off.
    write_atomically(STATE / "forced", "\n".join(due))
    # The first start joins a run of the timer that has read its requests already.
    for _ in range(2):
        subprocess.run(["systemctl", "start", UNIT], check=False)
        if not (STATE / "forced").exists():
            break
    after = State().entries
    for name in due:
        old, new = before.get(name, {}), after.get(name, {})
        if new.get("attempt") == old.get("attempt"):
            print(f"failed {name}: the unit failed, see journalctl -u {UNIT.removesuffix('.service')}")
        elif new.get("error"):
            print(f"failed {name}: {new['error']}")
        elif new.get("fingerprint") != old.get("fingerprint"):
            print(f"issued {name}")
    return 0


def reasons(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return why each certificate is due; empty for those that are not."""
    state, found = State(), {}
    urls = [authority["directory_url"] for authority in settings["authorities"]]
    for wanted in wanted_certificates(settings):
        leaf = installed(wanted.name).leaf
        found[wanted.name] = reason_to_issue(wanted, leaf, state.entry(wanted.name), urls, time.time())
    return found


def show(settings: Mapping[str, Any]) -> int:
    """Print a line for each certificate."""
    state = State()
    for wanted in wanted_certificates(settings):
        entry = state.entry(wanted.name)
        leaf = installed(wanted.name).leaf
        end, following = (
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(t)) for t in (validity(leaf)[1], entry["next"])
        )
        issuer = leaf.issuer.rfc4514_string()
        print(
            f"{wanted.name}: {', '.join(wanted.names)}; expires {end} UTC;"
            f" next attempt {following} UTC; {issuer}"
        )
        if entry["error"]:
            print(f"  {entry['failed']} failed attempts: {entry['error']}")
    return 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="fastmetal-acme", description="Public certificates of this edge.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("renew", help="issue what is due; the timer's service runs it")
    commands.add_parser("status", help="show each certificate")
    now = commands.add_parser("issue", help="issue what is due, or certain certificates, now")
    now.add_argument("names", nargs="*", help="certificates to issue although they are not due")
    arguments = parser.parse_args()
    settings = json.loads(SETTINGS.read_text())
    if arguments.command == "issue":
        return issue(settings, arguments.names)
    if arguments.command == "status":
        return show(settings)
    renew(settings, json.loads((Path(os.environ["CREDENTIALS_DIRECTORY"]) / "secrets.json").read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
