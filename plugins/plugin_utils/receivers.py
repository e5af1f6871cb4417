"""The receivers of a release's events: their faults, messages and transports."""

from __future__ import annotations

import json
import re
import smtplib
import ssl
import threading
import time
import types
import urllib.error
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

from ansible.module_utils.urls import open_url

EVENTS = ["started", "finished", "rolled_back"]
# Of a connection or an answer.
TIMEOUT_SECONDS = 5
# A release waits no longer than this for all receivers, also for one that sends its answer byte by byte.
LONGEST_SECONDS = 10
REQUIRED = {"webhook": ["url"], "slack": ["url"], "mail": ["to", "from", "smarthost"]}
OPTIONAL = {"webhook": ["headers"], "slack": [], "mail": ["auth_username", "auth_password", "require_tls"]}
TYPES: dict[str, tuple[type | types.UnionType, str]] = {
    **dict.fromkeys(("url", "from", "auth_username", "auth_password"), (str, "a string")),
    **dict.fromkeys(("to", "events"), (list | tuple, "a list")),
    "headers": (Mapping, "a dictionary"),
    "require_tls": (bool, "true or false"),
}


def receiver_faults(receivers: Iterable[Mapping[str, Any]], variable: str) -> list[str]:
    """Return a sentence for each receiver that cannot work; they show no values, as a URL may be secret."""
    return [f"{variable}.{item['name']} {fault}" for item in receivers for fault in _faults(item)]


def _faults(receiver: Mapping[str, Any]) -> Iterator[str]:
    kind = receiver.get("kind", "webhook")
    if kind not in REQUIRED:
        yield f"has an unknown kind: use {', '.join(REQUIRED)}."
        return
    known = [*REQUIRED[kind], *OPTIONAL[kind], "events"]
    for field in receiver.keys() - {"name", "kind", *known}:
        yield f"has the unknown field {field}: a receiver of the kind {kind} has {', '.join(known)}."
    for field in REQUIRED[kind]:
        if not receiver.get(field):
            yield f"has no {field}: a receiver of the kind {kind} needs it."
    for field in known:
        wanted, words = TYPES.get(field, (str, "a string"))
        if field in receiver and not isinstance(receiver[field], wanted):
            yield f"has {field} of another type: write {words}."
    if "url" in known and not str(receiver.get("url", "https://")).startswith(("https://", "http://")):
        yield "has a url without a scheme: begin it with https://."
    if kind == "mail" and not re.fullmatch(r"\S+:\d+", str(receiver.get("smarthost", "a:1"))):
        yield "has a smarthost without a port: write host:port, such as mail.example.com:587."
    if set(receiver.get("events", EVENTS)) - set(EVENTS):
        yield f"has an unknown event: use {', '.join(EVENTS)}."


def describe(event: str, facts: Mapping[str, Any]) -> str:
    """Return an event as one sentence."""
    commit = f"commit {facts['commit'][:12]}" if facts.get("commit") else ""
    what = facts["release"] or commit
    preposition = "to" if facts["action"] == "rollback" else "of"
    about = f"{facts['environment']}/{facts['service']}: {facts['action']}"
    about += f" {preposition} {what}" if what else ""
    who = f"by {facts['by']} on {facts['from']}"
    if event == "started":
        return f"{about} started {who}."
    if event == "finished":
        hosts = f"{len(facts['hosts'])} host{'s' * (len(facts['hosts']) != 1)}"
        return f"{about} finished on {hosts} in {facts['seconds']} s, started {who}."
    state = f"hosts run {facts['previous']}" if facts["previous"] else "no release is live"
    return f"{about} failed and was rolled back, {state}; started {who}. {facts['reason']}"


def post(receiver: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Post JSON to a receiver's URL."""
    headers = {"Content-Type": "application/json", "User-Agent": "fastmetal", **receiver.get("headers", {})}
    data, timeout = json.dumps(content), TIMEOUT_SECONDS
    open_url(receiver["url"], data=data, headers=headers, method="POST", timeout=timeout).close()


def mail(receiver: Mapping[str, Any], subject: str, body: str) -> None:
    """Send a mail by a receiver's mail server; port 465 is TLS from the start."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = receiver["from"], ", ".join(receiver["to"]), subject
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="fastmetal.invalid")
    message.set_content(body)
    host, _, port = str(receiver["smarthost"]).rpartition(":")
    server: smtplib.SMTP
    if port == "465":
        server = smtplib.SMTP_SSL(host, 465, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context())
    else:
        server = smtplib.SMTP(host, int(port), timeout=TIMEOUT_SECONDS)
    with server:
        if port != "465" and receiver.get("require_tls", True):
            server.starttls(context=ssl.create_default_context())
        if receiver.get("auth_username"):
            server.login(receiver["auth_username"], receiver["auth_password"])
        server.send_message(message)


def send(receiver: Mapping[str, Any], event: str, facts: Mapping[str, Any]) -> None:
    """Send one event to one receiver."""
    text, kind = describe(event, facts), receiver.get("kind", "webhook")
    if kind == "slack":
        post(receiver, {"text": text})
    elif kind == "webhook":
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        post(receiver, {"event": event, "time": now, "text": text, **facts})
    else:
        subject = f"[{facts['environment']}] {facts['service']}: {facts['action']} {event.replace('_', ' ')}"
        details = "\n".join(f"{name}: {value}" for name, value in facts.items() if value)
        mail(receiver, subject, f"{text}\n\n{details}\n")


def failure(action: Callable[[], None]) -> str:
    """Run an action and return why it failed, or nothing; the reasons name no URL and no password."""
    try:
        action()
    except urllib.error.HTTPError as error:
        return f"it answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except smtplib.SMTPResponseException as error:
        return f"it answered {error.smtp_code}"
    except Exception as error:  # A receiver must not stop a release, whichever way it fails.
        return f"{type(error).__name__}: {error}"
    return ""


def notify(receivers: Iterable[Mapping[str, Any]], event: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Send an event to all receivers that want it; return {name: why it failed, or nothing}."""
    wanted = {item["name"]: item for item in receivers if event in item.get("events", EVENTS)}
    reasons = dict.fromkeys(wanted, f"it did not answer within {LONGEST_SECONDS} s")

    def run(name: str) -> None:
        reasons[name] = failure(lambda: send(wanted[name], event, facts))

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in wanted]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LONGEST_SECONDS
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return dict(reasons)
