"""Certificates by service, and the account that any edge can answer for."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from plugins.filter import acme


def test_each_service_has_a_certificate_and_each_name_is_in_one() -> None:
    services: dict[str, dict[str, Any]] = {
        "api": {"redirect_names": ["www.a.test"]},
        "shop": {"redirect_names": ["old.a.test", "www.b.test"]},
        "wiki": {},
        "none": {"redirect_names": ["lost.test"]},
    }
    names = {"api": ["a.test"], "shop": ["b.test", "a.test"], "wiki": ["a.test"], "none": []}
    assert acme.acme_certificates(services, names, ["a.test", "ops.test"]) == {
        "api": {"names": ["a.test", "www.a.test"]},
        "shop": {"names": ["b.test", "old.a.test", "www.b.test"]},
        "consoles": {"names": ["ops.test"]},
    }


def test_files_are_those_of_hosts_that_issue() -> None:
    base = {"api": {"names": ["a.test"]}, "shop": {"names": ["b.test"]}}
    (entry,) = acme.acme_files(base, {"shop": None, "api": {"names": ["*.a.test"]}})
    assert entry == {
        "names": ["*.a.test"],
        "certificate": "/var/lib/fastmetal-acme/live/api/fullchain.pem",
        "key": "/var/lib/fastmetal-acme/live/api/privkey.pem",
    }
    assert acme.acme_files({}, {"api": {"names": ["a.test"]}}) == []


def test_the_account_is_a_function_of_secret_and_label() -> None:
    key = acme.acme_account_key("secret", "1")
    assert key == acme.acme_account_key("secret", "1")
    assert key.startswith("-----BEGIN EC PRIVATE KEY-----")
    assert len({key, acme.acme_account_key("secret", "2"), acme.acme_account_key("other", "1")}) == 3
    assert isinstance(load_pem_private_key(key.encode(), None), ec.EllipticCurvePrivateKey)
    assert len(acme.acme_thumbprint(key)) == 43


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        ({"names": ["a.test", "*.b.test"], "challenge": "dns"}, []),
        ({"names": []}, ["acme_certificates.api.names is empty: give it at least one host name."]),
        (
            {"names": ["192.0.2.1", "web1"]},
            [
                "acme_certificates.api has 192.0.2.1, web1, and a public CA certifies host names with a"
                " domain only: set public_name, or names of the service."
            ],
        ),
        (
            {"names": ["*.b.test"]},
            ["acme_certificates.api has *.b.test: set its challenge to dns, as wildcards need it."],
        ),
        (
            {"names": ["a*.b.test"], "challenge": "dns"},
            [
                "acme_certificates.api has a*.b.test: a wildcard is a whole first label,"
                " such as *.example.com."
            ],
        ),
        (
            {"names": [f"n{n}.test" for n in range(101)]},
            ["acme_certificates.api has 101 names, and CAs take 100: divide them into several services."],
        ),
    ],
)
def test_certificates_that_no_ca_would_issue(certificate: dict[str, Any], expected: list[str]) -> None:
    assert acme.acme_faults([{"name": "api", **certificate}], "http") == expected
