"""Scanners of Debian that take minutes: TLS from outside, and the configuration of the hosts."""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

from tests.attacker import INSTALL, LAB
from tests.lab import ROOT, play

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


def test_testssl_grades_the_site_a_plus(front: Host, addresses: dict[str, str], measured: list[str]) -> None:
    """On the attacker, whose release grades; with the lab's CA, as an unknown one lowers the grade."""
    ca, report = front.file("/etc/fastmetal/tls/ca.crt").content_string, "/root/testssl.json"
    LAB.ssh(
        "attacker",
        f"apt-get update -qq && {INSTALL} testssl.sh curl >/dev/null; cat > /root/ca.pem <<'E'\n{ca}\nE",
    )
    options = f"--quiet --warnings=off --color=0 --add-ca=/root/ca.pem --jsonfile={report} --overwrite"
    LAB.ssh("attacker", f"testssl {options} https://{addresses['front1']} >/dev/null || true")
    found = {entry["id"]: entry for entry in json.loads(LAB.ssh("attacker", f"cat {report}"))}
    measured.append(f"testssl.sh: {found['overall_grade']['finding']}")
    bad = {
        name: entry["finding"] for name, entry in found.items() if entry["severity"] in {"HIGH", "CRITICAL"}
    }
    # The environment's CA publishes no list of revoked certificates.
    assert (found["overall_grade"]["finding"], set(bad)) == ("A+", {"cert_revocation"})


REPORT = "/var/log/lynis-report.dat"
CONTENT = "/usr/share/xml/scap/ssg/content/ssg-debian12-ds.xml"
RULE = "xccdf_org.ssgproject.content_rule_"
PROFILE = "xccdf_org.ssgproject.content_profile_anssi_bp28_minimal"
# Rules of the profile that a host does not follow, with the reason.
NO_PASSWORDS = "no password opens a login, and those for sudo come from the inventory as hashes"
MISSES = {
    "accounts_password_set_max_life_root": "root has no password",
    "package_pam_pwquality_installed": NO_PASSWORDS,
    **dict.fromkeys(
        (
            *(f"accounts_password_pam_{name}" for name in ("dcredit", "lcredit", "ocredit", "ucredit")),
            *(f"accounts_password_pam_{name}" for name in ("minclass", "minlen", "retry", "unix_remember")),
            "accounts_password_pam_unix_rounds_password_auth",
            *(f"accounts_passwords_pam_faillock_{name}" for name in ("deny", "interval", "unlock_time")),
        ),
        NO_PASSWORDS,
    ),
}


def test_openscap_finds_the_known_misses_of_anssi_minimal_only(back: Host, measured: list[str]) -> None:
    """Debian 13 has the rules of Debian 12, so the reference to that release is removed."""
    back.check_output(f"apt-get update -qq && {INSTALL} openscap-scanner ssg-debian")
    back.check_output(f"sed '/platform idref=.*debian_linux:12/d' {CONTENT} > /run/anssi.xml")
    done = back.run(f"oscap xccdf eval --progress --profile {PROFILE} /run/anssi.xml")
    outcomes: dict[str, list[str]] = {}
    for rule, outcome in re.findall(rf"^{RULE}(\w+):(\w+)$", done.stdout, re.MULTILINE):
        outcomes.setdefault(outcome, []).append(rule)
    counts = {outcome: len(rules) for outcome, rules in outcomes.items()}
    measured.append(f"OpenSCAP, ANSSI BP-028 minimal on Debian 13: {counts}")
    assert len(outcomes["pass"]) > 10
    assert not {"error", "unknown"} & outcomes.keys()
    assert set(outcomes.get("fail", [])) == MISSES.keys()


# Tests of lynis that say nothing about these hosts, with the reason.
LYNIS_SKIPPED = {
    **dict.fromkeys(("AUTH-9230", "AUTH-9262", "AUTH-9286"), NO_PASSWORDS),
    "KRNL-6000": "the settings of a lab host's kernel are those of its machine; tests/vm has them",
    **dict.fromkeys(("DBS-1884", "DBS-1886", "DBS-1888"), "Redis has users with rights, and TLS"),
    **dict.fromkeys(("DEB-0810", "DEB-0811"), "they ask the person who upgrades; upgrades are unattended"),
    "FILE-6344": "the exporters read the processes of other accounts",
    "USB-3000": "which USB devices a machine has is its owner's to say",
}


@pytest.mark.parametrize("name", ["front", "back"])
def test_lynis_gives_hosts_80(name: str, request: pytest.FixtureRequest, measured: list[str]) -> None:
    """With AIDE; a container has no auditd."""
    host: Host = request.getfixturevalue(name)
    inventory, limit = ROOT / "molecule/security/inventory", host.backend.hostname
    playbooks = ("playbooks/base.yml", "playbooks/aide.yml")
    done = play("-i", inventory, *playbooks, "--limit", limit, "-e", "base_aide=true")
    assert done.status == 0, done.output
    host.check_output(f"apt-get update -qq && {INSTALL} lynis")
    profile = "".join(f"skip-test={test}\n" for test in LYNIS_SKIPPED)
    host.check_output(f"printf '%s' '{profile}' > /etc/lynis/custom.prf")
    host.check_output("lynis audit system --quick --quiet --no-colors")
    found = re.findall(r"^(\w+)=(.*)$", host.file(REPORT).content_string, re.MULTILINE)
    report = {key: value for key, value in found if key in {"hardening_index", "lynis_version"}}
    measured.append(f"lynis {report['lynis_version']} on {name}: {report['hardening_index']}")
    assert int(report["hardening_index"]) >= 80
