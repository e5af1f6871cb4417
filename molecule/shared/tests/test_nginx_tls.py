"""TLS of every listener of Nginx."""

import re
import shlex
import ssl

import pytest
from testinfra.host import Host

from tests.edge import Site
from tests.tls import ACCEPTED_GROUPS, REFUSED_CIPHERS, REFUSED_GROUPS, handshake


@pytest.fixture(scope="module")
def tls_listeners(host: Host, site: Site) -> list[str]:
    """Return address:port of every TLS listener of this host's Nginx."""
    with host.sudo():
        configuration = host.file("/etc/nginx/nginx.conf").content_string
    found = re.findall(r"^ *listen (\S+) ssl", configuration, re.MULTILINE)
    return sorted({f"{site.address}:443" if place in {"443", "[::]:443"} else place for place in found})


@pytest.mark.on("nginx")
def test_every_listener_accepts_only_the_listed_groups(site: Site, tls_listeners: list[str]) -> None:
    for listener in tls_listeners:
        for group in REFUSED_GROUPS:
            assert "Cipher is (NONE)" in handshake(listener, "-servername", site.name, "-groups", group), (
                listener,
                group,
            )
        for group in ACCEPTED_GROUPS:
            assert "New, TLSv1.3" in handshake(listener, "-servername", site.name, "-groups", group), (
                listener,
                group,
            )


@pytest.mark.on("nginx")
def test_no_listener_offers_dhe_ciphers(site: Site, tls_listeners: list[str]) -> None:
    for listener in tls_listeners:
        for cipher in REFUSED_CIPHERS:
            found = handshake(listener, "-servername", site.name, "-tls1_2", "-cipher", cipher)
            assert "Cipher is (NONE)" in found, (listener, cipher)


@pytest.mark.on("edge", "complete")
def test_the_hybrid_group_is_negotiated_where_openssl_has_it(host: Host, site: Site) -> None:
    command = ["openssl", "s_client", "-connect", f"{site.address}:443", "-servername", site.name]
    found = host.run(f"{shlex.join(command)} </dev/null").stdout
    hybrid = host.check_output("openssl version").split()[1] >= "3.5"
    assert ("Negotiated TLS1.3 group: X25519MLKEM768" if hybrid else "Server Temp Key: X25519") in found


@pytest.mark.on("edge")
def test_certificate_verifies(site: Site) -> None:
    with site.connect() as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.version() == "TLSv1.3"
        assert connection.selected_alpn_protocol() is None


@pytest.mark.on("edge")
def test_certificate_is_not_for_other_names(site: Site) -> None:
    other_name = Site(site.address, "stranger.invalid", site.ca, site.settings)
    with pytest.raises(ssl.SSLCertVerificationError):
        other_name.connect()


@pytest.mark.on("edge")
def test_http2_is_negotiated(site: Site) -> None:
    context = site.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with site.connect(context=context) as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.selected_alpn_protocol() == "h2"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
@pytest.mark.on("edge")
def test_old_tls_is_refused(site: Site, version: str) -> None:
    context = site.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        site.connect(context=context)


@pytest.mark.on("edge")
def test_tls_1_2_is_served(site: Site) -> None:
    context = site.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with site.connect(context=context) as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.version() == "TLSv1.2"


@pytest.mark.on("edge")
def test_http_redirects(site: Site) -> None:
    answer = site.request("/api/v1/products?page=2", port=80)
    assert answer.status == 301
    assert answer.headers["Location"] == f"https://{site.name}/api/v1/products?page=2"


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.on("edge")
def test_unknown_host_is_refused(site: Site, port: int) -> None:
    answer = site.request("/health/live", port=port, host="stranger.invalid")
    assert answer.status == 421
    answer.assert_problem()
