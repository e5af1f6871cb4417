"""The ACME client: when certificates are due, what it accepts, and how long it waits after failures."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import acme_client
import certs
import lego
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

HOUR, DAY = 3600, 86400
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
BEGIN = START.timestamp()
WANTED = certs.Wanted("api", ("api.test", "www.test"), "http", "ec256")
URL = "https://ca.test/dir"
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make(
    lifetime: float = 90 * DAY,
    names: Iterable[str] = WANTED.names,
    key: Key | None = None,
    signer: Key | None = None,
) -> certs.Pair:
    """Return a certificate with its key; signer: another key in the file."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(START).not_valid_after(START + datetime.timedelta(seconds=lifetime))
    builder = builder.add_extension(x509.SubjectAlternativeName(map(x509.DNSName, names)), critical=False)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    return certs.Pair(
        builder.sign(key, hashes.SHA256()).public_bytes(pem).decode(),
        (signer or key).private_bytes(pem, form, serialization.NoEncryption()).decode(),
    )


def reason(pair: certs.Pair, now: float, wanted: certs.Wanted = WANTED, **entry: Any) -> str:
    """Return why a certificate is due that the client issued at URL."""
    known = {"fingerprint": pair.fingerprint, "directory_url": URL} | entry
    return certs.reason_to_issue(wanted, pair.leaf, known, [URL], now)


@pytest.mark.parametrize("lifetime", [6 * HOUR, 160 * HOUR, 45 * DAY, 90 * DAY, 397 * DAY])
def test_every_lifetime_is_renewed_after_two_thirds(lifetime: float) -> None:
    pair = make(lifetime)
    assert reason(pair, BEGIN + lifetime * 2 / 3 - 1) == ""
    assert reason(pair, BEGIN + lifetime * 2 / 3 + 1) == "two thirds of its lifetime have passed"
    # The CA may be away for the rest: ten attempts and more, but for the shortest.
    waits = [certs.retry_seconds(failed, lifetime) for failed in range(1, 11)]
    assert sum(waits) < max(lifetime / 3, 6 * HOUR)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fingerprint": "other"}, "no certificate has been issued yet"),
        ({"directory_url": "https://old.test/dir"}, "it is from a CA that acme_authorities no longer has"),
        ({"wanted": certs.Wanted("api", ("api.test",), "http", "ec256")}, "its names have changed"),
        ({"wanted": certs.Wanted("api", WANTED.names, "http", "rsa2048")}, "its type of key has changed"),
        ({}, ""),
    ],
)
def test_what_else_makes_a_certificate_due(changes: dict[str, Any], expected: str) -> None:
    assert reason(make(), BEGIN + DAY, **changes) == expected


def test_retries_wait_longer_and_at_most_a_day() -> None:
    assert certs.retry_seconds(0, 90 * DAY) == 0
    assert [certs.retry_seconds(n, 90 * DAY) / HOUR for n in range(1, 8)] == [1, 2, 4, 8, 16, 24, 24]
    assert certs.retry_seconds(9, 160 * HOUR) == 160 * HOUR / 36


@pytest.mark.parametrize(
    ("pair", "now", "message"),
    [
        (make(names=["api.test"]), BEGIN + 1, r"without www\.test"),
        (make(signer=ec.generate_private_key(ec.SECP256R1())), BEGIN + 1, "of another key"),
        (make(HOUR), BEGIN + 2 * HOUR, "not valid now"),
    ],
)
def test_a_pair_that_clients_would_refuse_is_not_installed(
    pair: certs.Pair, now: float, message: str
) -> None:
    with pytest.raises(certs.AcmeError, match=message):
        certs.judge(pair, WANTED, now)


def test_key_types_have_the_words_of_lego() -> None:
    keys: dict[str, Key] = {
        "ec256": ec.generate_private_key(ec.SECP256R1()),
        "ec384": ec.generate_private_key(ec.SECP384R1()),
        "rsa2048": rsa.generate_private_key(65537, 2048),
    }
    for name, key in keys.items():
        pair = make(key=key)
        assert certs.key_type(pair.leaf) == name
        certs.judge(pair, WANTED, BEGIN + 1)


def test_installing_switches_certificate_and_key_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acme_client, "STATE", tmp_path)
    for folder in ("live", "versions", "placeholder"):
        (tmp_path / folder).mkdir()
    (tmp_path / "live/api").symlink_to("../placeholder")
    pairs = [make() for _ in range(3)]
    for pair in pairs:
        acme_client.install("api", pair)
        found = tmp_path / "live/api"
        assert (found / "fullchain.pem").read_text() == pair.chain
        assert (found / "privkey.pem").read_text() == pair.key
        assert (found / "privkey.pem").stat().st_mode & 0o777 == 0o640
    # The last one stays for an operator, older ones go.
    assert len(list((tmp_path / "versions").iterdir())) == 2


class Edge:
    """A stub of an edge with one certificate, and of systemd; each entry of `starts` is a run of the unit."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch, starts: list[str]) -> None:
        self.state, self.starts = state, starts
        self.settings = {
            "authorities": [],
            "certificates": [
                {"name": "api", "names": ["api.test"], "challenge": "http", "key_type": "ec256"}
            ],
        }
        self.attempts = 0
        for folder in ("live", "versions"):
            (state / folder).mkdir()
        monkeypatch.setattr(acme_client, "STATE", state)
        monkeypatch.setattr(acme_client, "attempt", self.attempt)
        monkeypatch.setattr(acme_client, "reason_to_issue", lambda *_: "")
        monkeypatch.setattr("subprocess.run", self.start)
        acme_client.install("api", make())

    def attempt(self, _wanted: object, _settings: object, _secrets: object, entry: dict[str, Any]) -> None:
        """Issue the certificate."""
        self.attempts += 1
        entry |= {"attempt": float(self.attempts), "fingerprint": str(self.attempts)}

    def start(self, _command: list[str], *, check: bool) -> None:
        """Run the unit."""
        assert not check
        if self.starts.pop(0) == "runs":
            acme_client.renew(self.settings, {})


@pytest.mark.parametrize("starts", [["runs"], ["joins", "runs"]])
def test_a_request_is_not_lost_to_a_run_of_the_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], starts: list[str]
) -> None:
    edge = Edge(tmp_path, monkeypatch, starts)
    assert acme_client.issue(edge.settings, ["api"]) == 0
    assert (edge.attempts, edge.starts, capsys.readouterr().out) == (1, [], "issued api\n")
    assert not list(tmp_path.glob("forced*"))


def test_a_request_during_a_run_is_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = Edge(tmp_path, monkeypatch, [])
    (tmp_path / "forced").write_text("api")

    def request(*arguments: Any) -> None:
        edge.attempt(*arguments)
        (tmp_path / "forced").write_text("api")

    monkeypatch.setattr(acme_client, "attempt", request)
    acme_client.renew(edge.settings, {})
    assert (tmp_path / "forced").read_text() == "api"


def test_keys_of_a_certificate_that_is_no_longer_configured_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = Edge(tmp_path, monkeypatch, ["runs"])
    acme_client.install("shop", make())
    assert acme_client.issue(edge.settings, []) == 0
    assert [link.name for link in (tmp_path / "live").iterdir()] == ["api"]
    assert {folder.name.partition("@")[0] for folder in (tmp_path / "versions").iterdir()} == {"api"}


def test_the_first_certificate_is_not_put_off_by_the_lifetime_of_its_placeholder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = Edge(tmp_path, monkeypatch, [])

    def fail(_wanted: object, _settings: object, _secrets: object, entry: dict[str, Any]) -> None:
        entry |= {"attempt": 1000.0, "failed": 5}

    monkeypatch.setattr(acme_client, "attempt", fail)
    monkeypatch.setattr(acme_client, "reason_to_issue", lambda *_: "no certificate has been issued yet")
    acme_client.renew(edge.settings, {})
    assert acme_client.State().entries["api"]["next"] == 1000


def test_a_unit_that_fails_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edge = Edge(tmp_path, monkeypatch, ["fails", "fails"])
    assert acme_client.issue(edge.settings, ["api"]) == 0
    assert capsys.readouterr().out == "failed api: the unit failed, see journalctl -u fastmetal-acme\n"


def test_commands_carry_no_secret(tmp_path: Path) -> None:
    settings = {
        "email": "a@b.test",
        "dns_provider": "exec",
        "dns_resolvers": ["192.0.2.1:53"],
        "dns_check": False,
    }
    secrets = {"account_key": "KEY", "environment": {"TOKEN": "SECRET"}}
    client = lego.Lego(
        {"name": "ca", "directory_url": "https://ca.test:14000/dir"}, settings, secrets, tmp_path
    )
    wanted = certs.Wanted("shop", ("*.shop.test",), "dns", "rsa2048")
    words = client.command(wanted)
    assert "SECRET" not in " ".join(words)
    assert client.environment()["TOKEN"] == "SECRET"
    assert words[-2:] == ["--domains=*.shop.test", "run"]
    assert "--dns.disable-cp" in words
    assert wanted.probe == "probe.shop.test"


def test_another_account_key_ends_the_registration(tmp_path: Path) -> None:
    settings = {"email": "a@b.test"}
    authority = {"name": "ca", "directory_url": "https://ca.test:14000/dir"}
    for key in ("ONE", "ONE", "TWO"):
        client = lego.Lego(authority, settings, {"account_key": key}, tmp_path)
        registration = client.use_account()
        assert registration == tmp_path / "lego/ca/accounts/ca.test_14000/a@b.test/account.json"
        assert registration.exists() == (key == "ONE" and (registration.parent / "seen").exists())
        assert (registration.parent / "keys/a@b.test.key").read_text() == key
        registration.write_text(json.dumps({}))
        (registration.parent / "seen").touch()


def stub_acme(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Install stand-ins for the modules of python3-acme, which the control node does not have."""
    error = type("Error", (Exception,), {"code": property(lambda self: self.args[0])})
    conflict = type("ConflictError", (Exception,), {"location": "known"})
    acme = SimpleNamespace(
        messages=SimpleNamespace(Error=error), errors=SimpleNamespace(ConflictError=conflict)
    )
    monkeypatch.setitem(sys.modules, "acme", cast(ModuleType, acme))
    return acme


@pytest.mark.parametrize(
    ("refused", "code", "calls"), [(4, "badNonce", 5), (5, "badNonce", 5), (1, "unauthorized", 1)]
)
def test_an_account_is_registered_again_when_the_ca_refuses_a_nonce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int, code: str, calls: int
) -> None:
    acme = stub_acme(monkeypatch)
    asked: list[Any] = []

    def new_account(registration: Any) -> SimpleNamespace:
        asked.append(registration)
        if len(asked) <= refused:
            raise acme.messages.Error(code)
        return SimpleNamespace(uri="new")

    client = lego.Lego({"name": "ca", "directory_url": URL}, {"email": "a@b"}, {}, tmp_path)
    if refused < calls:
        assert client.account_uri(new_account, "wanted") == "new"
    else:
        with pytest.raises(acme.messages.Error, match=code):
            client.account_uri(new_account, "wanted")
    assert asked == ["wanted"] * calls


def test_a_key_that_has_an_account_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acme = stub_acme(monkeypatch)

    def new_account(_: Any) -> None:
        raise acme.errors.ConflictError

    client = lego.Lego({"name": "ca", "directory_url": URL}, {"email": "a@b"}, {}, tmp_path)
    assert client.account_uri(new_account, "wanted") == "known"


def test_failures_are_explained_in_one_line() -> None:
    output = (
        "2026/01/01 10:00:00 [INFO] [api.test] acme: Obtaining bundled SAN certificate\n"
        "2026/01/01 10:00:05 Could not obtain certificates:\n"
        "\terror: one or more domains had a problem:\n"
        "[api.test] acme: error: 400 :: urn:ietf:params:acme:error:connection :: refused\n"
    )
    assert lego.explain(output) == (
        "Could not obtain certificates: error: one or more domains had a problem:"
        " [api.test] acme: error: 400 :: urn:ietf:params:acme:error:connection :: refused"
    )
    assert lego.explain("") == "lego failed without a message"
