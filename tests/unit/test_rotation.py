"""The steps of a rotation in the vault's text, also after an interruption."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import chain, islice

import pytest
import yaml
from cryptography import x509

from plugins.module_utils.rotation import PAIRS, RotationError, Vault, rotate

HOUR = 3600
TEXT = """---
# The environment's CA.
tls_ca_key: |
  -----BEGIN PRIVATE KEY-----
  old
  -----END PRIVATE KEY-----
tls_ca_certificate: |
  -----BEGIN CERTIFICATE-----
  old
  -----END CERTIFICATE-----
# Signs tokens.
secret_key: "old-key"
secret_redis_app_password: old-password
secret_database_app_password: old-app
secret_database_owner_password: old-owner
mine: {a: 1}
"""


def step(text: str, name: str, *kinds: str, overlap: int = HOUR) -> str:
    """Return the text after a step."""
    return rotate(text, list(kinds), name, "lab", overlap)[0]


def test_a_password_is_accepted_beside_the_other_until_the_end() -> None:
    begun = step(TEXT, "begin", "redis")
    first = yaml.safe_load(begun)
    assert first["secret_redis_app_password"] == "old-password"
    new = first["rotation_redis_app_password"]
    assert re.fullmatch(r"\w{48}", new)
    second = yaml.safe_load(step(begun, "switch", "redis"))
    assert (second["secret_redis_app_password"], second["rotation_redis_app_password"]) == (
        new,
        "old-password",
    )
    last = yaml.safe_load(step(step(begun, "switch", "redis"), "end", "redis"))
    assert (last["secret_redis_app_password"], last["rotation_redis_app_password"]) == (new, "")
    assert last["mine"] == {"a": 1}


def test_both_roles_of_the_database_get_another_password() -> None:
    begun = step(TEXT, "begin", "database")
    first = yaml.safe_load(begun)
    assert (first["secret_database_app_password"], first["secret_database_owner_password"]) == (
        "old-app",
        "old-owner",
    )
    switched = step(begun, "switch", "database")
    second, last = yaml.safe_load(switched), yaml.safe_load(step(switched, "end", "database"))
    for role in ("app", "owner"):
        secret, other = f"secret_database_{role}_password", f"rotation_database_{role}_password"
        assert second[secret] == last[secret] == first[other]
        assert (second[other], last[other]) == (f"old-{role}", "")
    assert first["rotation_database_app_password"] != first["rotation_database_owner_password"]


class Environment:
    """A model of playbooks/rotate.yml: the vault, the password in Postgres, and those of two services."""

    def __init__(self) -> None:
        self.text, self.server, self.services = TEXT, "old-app", [{"old-app"}, {"old-app"}]

    def changes(self) -> Iterator[None]:
        """Make the changes of a run in their order."""
        for name in ("begin", "switch", "end"):
            self.text = step(self.text, name, "database")
            yield
            vault = Vault(self.text)
            self.server = vault.get("secret_database_app_password")
            yield
            for number in range(2):
                self.services[number] = {self.server, vault.get("rotation_database_app_password")} - {""}
                yield


@pytest.mark.parametrize("changes", range(13))
def test_a_killed_rotation_continues_and_services_always_have_the_password(changes: int) -> None:
    environment = Environment()
    for _ in chain(islice(environment.changes(), changes), environment.changes()):
        assert all(environment.server in passwords for passwords in environment.services)
    assert environment.services == [{environment.server}] * 2
    assert environment.server != "old-app"


@pytest.mark.parametrize("kind", PAIRS)
def test_each_step_is_taken_once(kind: str) -> None:
    text = TEXT
    for name in ("begin", "switch"):
        text = step(text, name, kind)
        assert step(text, "begin", kind) == text
        assert step(text, name, kind) == text


def test_a_run_that_continues_does_not_make_another_value() -> None:
    switched = step(step(TEXT, "begin", "ca"), "switch", "ca")
    assert step(step(switched, "begin", "ca"), "switch", "ca") == switched


def test_a_new_ca_signs_and_has_a_name_of_its_own() -> None:
    found = yaml.safe_load(step(step(TEXT, "begin", "ca"), "switch", "ca"))
    certificate = x509.load_pem_x509_certificate(found["tls_ca_certificate"].encode())
    assert certificate.subject.rfc4514_string().startswith("CN=Fastmetal lab CA 20")
    assert "old" in found["tls_other_ca_certificate"]
    assert "# The environment's CA." in step(TEXT, "begin", "ca")


def test_certificates_are_issued_again_from_the_begin_to_the_end() -> None:
    begun = step(TEXT, "begin", "leaf")
    assert abs(yaml.safe_load(begun)["tls_issue_since"] - time.time()) < 5
    ended = step(step(begun, "switch", "leaf"), "end", "leaf")
    assert yaml.safe_load(ended)["tls_issue_since"] == 0


def test_tokens_of_the_former_key_stay_valid() -> None:
    switched = step(step(TEXT, "begin", "signing_key"), "switch", "signing_key")
    waiting, message = rotate(switched, ["signing_key"], "end", "lab", HOUR)
    assert re.fullmatch(
        r"Tokens of the former key are valid until \S+ \S+ UTC: then run again with -e what=signing_key.",
        message,
    )
    assert yaml.safe_load(waiting)["rotation_secret_key"] == "old-key"
    # All steps again: the hosts get the values once more, and the other kinds are not blocked.
    for name in ("begin", "switch", "end"):
        assert step(waiting, name, "signing_key") == waiting
    assert yaml.safe_load(step(waiting, "begin", *PAIRS))["rotation_redis"] == "begun"
    ended = yaml.safe_load(step(waiting, "end", "signing_key", overlap=0))
    assert ended["rotation_secret_key"] == ""
    assert re.fullmatch(r"[0-9a-f]{64}", ended["secret_key"])


def test_the_overlap_begins_when_the_services_have_the_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
    switched = step(step(TEXT, "begin", "signing_key"), "switch", "signing_key")
    now = time.time()
    # The run was interrupted, and continues much later.
    monkeypatch.setattr(time, "time", lambda: now + 9 * HOUR)
    waiting = step(switched, "end", "signing_key")
    assert yaml.safe_load(waiting)["rotation_secret_key"] == "old-key"
    monkeypatch.setattr(time, "time", lambda: now + 10 * HOUR + 1)
    ended, message = rotate(waiting, ["signing_key"], "end", "lab", HOUR)
    assert (yaml.safe_load(ended)["rotation_secret_key"], message) == ("", "")


@pytest.mark.parametrize("password", ["", "secret_redis_app_password: # none"])
def test_a_secret_that_is_not_in_the_vault_is_refused(password: str) -> None:
    text = TEXT.replace("secret_redis_app_password: old-password", password)
    expected = r"^secret_redis_app_password is not in vault\.yml of lab: put it there\.$"
    with pytest.raises(RotationError, match=expected):
        step(text, "begin", "leaf", "redis")


def test_values_are_read_as_yaml() -> None:
    vault = Vault("a: one # a comment\nb: 'it''s' # two\nc: |\n  x\n    y\nd: !vault x\ne: 7\n")
    assert [vault.get(name) for name in "abce"] == ["one", "it's", "x\n  y\n", "7"]
    with pytest.raises(RotationError, match="d cannot be read"):
        vault.get("d")


def test_a_value_of_one_line_replaces_several() -> None:
    vault = Vault(TEXT)
    vault.set("tls_ca_key", "")
    assert yaml.safe_load(vault.text)["tls_ca_key"] == ""
    assert vault.get("secret_redis_app_password") == "old-password"
    assert vault.get("absent") == ""


def test_a_password_keeps_characters_that_yaml_knows() -> None:
    vault = Vault(TEXT)
    for value in ('pa"ss\\n', "p: #a", "ünï"):
        vault.set("mine", value)
        assert yaml.safe_load(vault.text)["mine"] == value
        assert vault.get("mine") == value
