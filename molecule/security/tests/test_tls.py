"""TLS as a scanner judges it, and the load that expensive key exchanges cause."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testinfra.host import Host

from plugins.filter.wiring import url_host
from tests.attacker import LAB, SCANNERS, Attacker
from tests.edge import Site
from tests.lab import play
from tests.load.report import percentile
from tests.tls import admits

# Host, port and client pair of every TLS listener; the pair is a host's with its name.
LISTENERS = [
    ("front1", 443, "", ""),
    ("front1", 8443, "back1", "monitoring"),
    ("front1", 9100, "back1", "monitoring"),
    ("back1", 8444, "front1", "edge"),
    ("back1", 19532, "front1", "logs"),
    ("back1", 6379, "", ""),
    ("back1", 5432, "", ""),
]


@pytest.mark.parametrize(("name", "port", "owner", "role"), LISTENERS)
def test_sslyze_finds_the_intermediate_configuration(
    addresses: dict[str, str],
    private: dict[str, str],
    tmp_path: Path,
    name: str,
    port: int,
    owner: str,
    role: str,
) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_text(LAB.ssh(name, "cat /etc/fastmetal/tls/ca.crt"))
    options = ["--mozilla_config=intermediate", "--certinfo_ca_file", str(ca)]
    for option, suffix in (("--cert", "crt"), ("--key", "key")) if role else ():
        file = tmp_path / f"client.{suffix}"
        file.write_text(LAB.ssh(owner, f"cat /etc/fastmetal/tls/{role}.{suffix}"))
        options += [option, str(file)]
    options += ["--starttls", "postgres"] if port == 5432 else []
    # Clients reach the public site by IPv4, which its certificate names here.
    address = addresses[name] if port == 443 else private[name]
    target = f"{url_host(address)}:{port}"
    done = subprocess.run(
        [SCANNERS / "sslyze", *options, target], capture_output=True, text=True, timeout=120, check=False
    )
    assert f"{address}:{port}: OK - Compliant." in done.stdout, done.stdout[-2000:]


def test_hellos_for_expensive_groups_slow_no_other_client(
    attacker: Attacker, front: Host, addresses: dict[str, str], measured: list[str]
) -> None:
    """D(HE)at: 20 hellos a second took other clients from 5 ms to 5 s when the server offered ffdhe8192."""
    address = addresses["front1"]
    hello = f"openssl s_client -connect {address}:443 -groups ffdhe8192 </dev/null"
    assert "handshake failure" in attacker.run("sh", "-c", hello).stderr
    command = f"for n in $(seq 160); do {hello} >/dev/null 2>&1 || echo refused & sleep 0.05; done; wait"
    site = Site(address, address, front.file("/etc/fastmetal/tls/ca.crt").content_string, {})
    seconds = []
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        flood = pool.submit(attacker.run, "sh", "-c", command)
        while not flood.done():
            begun = time.monotonic()
            assert site.request("/health/live").status == 200
            seconds.append(time.monotonic() - begun)
            time.sleep(0.02)
    assert flood.result().stdout.split() == ["refused"] * 160
    assert time.monotonic() - started < 12
    slowest = percentile(seconds, 0.99)
    measured.append(f"20 hellos a second: p99 of {len(seconds)} other requests {slowest * 1000:.0f} ms")
    assert len(seconds) > 20
    assert slowest < 0.1


def test_a_client_of_the_operator_opens_the_listeners_of_its_role_only(
    private: dict[str, str], tmp_path: Path
) -> None:
    """The firewall admits the control node, which is where the certificate is made."""
    options = ("-e", "env=lab", "-e", "client_role=monitoring", "-e", "client_name=prometheus")
    done = play("playbooks/client_certificate.yml", *options, PWD=str(tmp_path))
    assert done.status == 0, done.output
    pair = (tmp_path / "prometheus.crt", tmp_path / "prometheus.key")
    ports = {("front1", 8443): True, ("front1", 9100): True, ("back1", 8444): False, ("back1", 19532): False}
    assert {place: admits(private[place[0]], place[1], *pair) for place in ports} == ports
