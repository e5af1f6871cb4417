"""The action release_notify: what receivers get, and that a failing one is only a warning."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
from ansible_collections.fastmetal.metal.plugins.plugin_utils import receivers
from ansible_collections.fastmetal.metal.plugins.plugin_utils.receivers import describe, receiver_faults

from plugins.action.release_notify import ActionModule

FACTS = {
    "service": "shop",
    "environment": "production",
    "action": "deploy",
    "release": "1.4.0-0123456789ab",
    "previous": "1.3.0-ba9876543210",
    "commit": "0123456789abcdef",
    "by": "alice",
    "from": "laptop",
    "hosts": ["web1", "web2"],
    "reason": "web1: The release is not ready.",
}


def notify(
    receivers: Sequence[Mapping[str, Any]], event: str = "started", **arguments: Any
) -> dict[str, Any]:
    """Return the task's result."""
    given = {"receivers": receivers, "event": event, "facts": FACTS, "began": 0, **arguments}
    action = ActionModule(MagicMock(args={}, async_val=0), *(MagicMock() for _ in range(5)))
    with patch.object(action, "validate_argument_spec", return_value=(None, given)):
        result: dict[str, Any] = action.run(task_vars={})
    return result


class Receiver(ThreadingHTTPServer):
    """A receiver on loopback, which keeps the requests that it gets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    """Answers 404 below /missing, and nothing below /silent."""

    server: Receiver

    def do_POST(self) -> None:
        """Keep the request."""
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, dict(self.headers), content))
        if self.path == "/silent":
            threading.Event().wait(5)
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""


class MailServer(socketserver.ThreadingTCPServer):
    """A mail server on loopback without TLS, which keeps the lines that it gets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MailHandler)
        self.got: list[str] = []

    @property
    def smarthost(self) -> str:
        """Return its address and port."""
        return f"127.0.0.1:{self.server_address[1]}"


class MailHandler(socketserver.StreamRequestHandler):
    """Takes one mail by SMTP."""

    server: MailServer

    def handle(self) -> None:
        """Answer each command."""
        self.wfile.write(b"220 mail\r\n")
        for line in self.rfile:
            word = line.strip().upper().split(b" ")[0]
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                for part in iter(self.rfile.readline, b".\r\n"):
                    self.server.got.append(part.decode().strip())
            self.wfile.write({b"QUIT": b"221 bye\r\n"}.get(word, b"250 ok\r\n"))
            if word == b"QUIT":
                return


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of JSON."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_webhook_gets_the_facts_and_its_headers(receiver: Receiver) -> None:
    entry = {"name": "ci", "url": receiver.url("/hook"), "headers": {"Authorization": "Bearer x"}}
    result = notify([entry], event="finished", began=1.0)
    assert result["sent"] == ["ci"]
    assert result["warnings"] == []
    [(path, headers, content)] = receiver.got
    assert path == "/hook"
    assert headers["Authorization"] == "Bearer x"
    assert headers["Content-Type"] == "application/json"
    assert content.items() >= {**FACTS, "event": "finished"}.items()
    assert content["time"].endswith("Z")
    assert content["seconds"] > 1
    assert "finished on 2 hosts in" in content["text"]


def test_slack_gets_one_sentence(receiver: Receiver) -> None:
    notify([{"name": "team", "kind": "slack", "url": receiver.url("/")}])
    assert receiver.got[0][2] == {
        "text": "production/shop: deploy of 1.4.0-0123456789ab started by alice on laptop."
    }


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    """A mail server."""
    with MailServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_mail_has_subject_sentence_and_facts(mail_server: MailServer) -> None:
    entry = {
        "name": "ops",
        "kind": "mail",
        "to": ["ops@example.com", "it@example.com"],
        "from": "a@example.com",
    }
    plain = {"smarthost": mail_server.smarthost, "require_tls": False}
    assert notify([entry | plain], event="rolled_back")["warnings"] == []
    assert "Subject: [production] shop: deploy rolled back" in mail_server.got
    assert "To: ops@example.com, it@example.com" in mail_server.got
    assert "previous: 1.3.0-ba9876543210" in mail_server.got


def test_a_mail_is_not_sent_without_tls(mail_server: MailServer) -> None:
    entry: dict[str, Any] = {
        "name": "ops",
        "kind": "mail",
        "to": ["ops@example.com"],
        "from": "a@example.com",
    }
    result = notify([entry | {"smarthost": mail_server.smarthost}])
    assert "STARTTLS" in result["warnings"][0]
    assert mail_server.got == []


def test_receivers_choose_events(receiver: Receiver) -> None:
    entries: list[dict[str, Any]] = [
        {"name": "all", "url": receiver.url("/all")},
        {"name": "failures", "url": receiver.url("/failures"), "events": ["rolled_back"]},
    ]
    notify(entries, event="started")
    assert [path for path, *_ in receiver.got] == ["/all"]
    notify(entries, event="rolled_back")
    assert sorted(path for path, *_ in receiver.got[1:]) == ["/all", "/failures"]


def test_a_failing_receiver_is_a_warning_and_the_others_are_notified(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    result = notify(
        [
            {"name": "good", "url": receiver.url("/")},
            {"name": "missing", "url": receiver.url("/missing")},
            {"name": "closed", "url": f"http://127.0.0.1:{port}/secret-token"},
            {"name": "silent", "url": receiver.url("/silent")},
            {"name": "post", "kind": "mail", "to": ["x"], "from": "y", "smarthost": f"127.0.0.1:{port}"},
            {"name": "odd", "url": "http://[/secret-token"},
        ]
    )
    assert result["sent"] == ["good"]
    assert not result.get("failed")
    warnings = dict(warning.removeprefix("The receiver ").split(" ", 1) for warning in result["warnings"])
    assert set(warnings) == {"missing", "closed", "silent", "post", "odd"}
    assert warnings["missing"] == "was not notified: it answered 404 Not Found."
    assert "Connection refused" in warnings["closed"]
    assert "timed out" in warnings["silent"]
    assert "secret-token" not in str(result["warnings"])


def test_a_release_does_not_wait_for_a_receiver_for_ever(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "LONGEST_SECONDS", 0.2)
    result = notify([{"name": "silent", "url": receiver.url("/silent")}])
    assert result["warnings"] == ["The receiver silent was not notified: it did not answer within 0.2 s."]


@pytest.mark.parametrize(
    ("event", "more", "sentence"),
    [
        (
            "started",
            {"release": ""},
            "production/shop: deploy of commit 0123456789ab started by alice on laptop.",
        ),
        ("started", {"release": "", "commit": ""}, "production/shop: deploy started by alice on laptop."),
        (
            "finished",
            {"action": "rollback", "hosts": ["web1"]},
            "production/shop: rollback to 1.4.0-0123456789ab finished on 1 host in 4 s,"
            " started by alice on laptop.",
        ),
        (
            "rolled_back",
            {},
            "production/shop: deploy of 1.4.0-0123456789ab failed and was rolled back,"
            " hosts run 1.3.0-ba9876543210; started by alice on laptop. web1: The release is not ready.",
        ),
        (
            "rolled_back",
            {"previous": ""},
            "production/shop: deploy of 1.4.0-0123456789ab failed and was rolled back, no release is live;"
            " started by alice on laptop. web1: The release is not ready.",
        ),
    ],
)
def test_an_event_is_one_sentence(event: str, more: dict[str, Any], sentence: str) -> None:
    assert describe(event, {**FACTS, "seconds": 4, **more}) == sentence


MAIL = {"kind": "mail", "to": ["x"], "from": "y", "smarthost": "mail:587"}


@pytest.mark.parametrize(
    ("receiver", "fault"),
    [
        ({"url": "https://x"}, None),
        ({"kind": "slack", "url": "https://x", "events": ["finished"]}, None),
        ({**MAIL, "auth_username": "a", "auth_password": "b", "require_tls": False}, None),
        ({"kind": "irc"}, "has an unknown kind: use webhook, slack, mail."),
        ({}, "has no url: a receiver of the kind webhook needs it."),
        (
            {"kind": "slack", "url": "https://x", "channel": "#a"},
            "has the unknown field channel: a receiver of",
        ),
        ({"url": "hooks.example.com/secret"}, "has a url without a scheme: begin it with https://."),
        ({**MAIL, "to": "x"}, "has to of another type: write a list."),
        ({**MAIL, "smarthost": "mail"}, "has a smarthost without a port: write host:port"),
        (
            {"url": "https://x", "events": ["done"]},
            "has an unknown event: use started, finished, rolled_back.",
        ),
        ({"url": "https://x", "events": "started"}, "has events of another type: write a list."),
    ],
)
def test_a_receiver_that_cannot_work_is_refused(receiver: dict[str, Any], fault: str | None) -> None:
    faults = receiver_faults([{"name": "team", **receiver}], "release_notify")
    if fault is None:
        assert faults == []
    else:
        assert faults[0].startswith(f"release_notify.team {fault}")
        assert "secret" not in str(faults)
