"""No generated secret can be read on a host except by the accounts that use it."""

from __future__ import annotations

import base64
import shlex

import pytest
from testinfra.host import Host

from tests.lab import ROOT

# Command lines, environments of other accounts' processes, journals, units, and files that every account can
# read.
SEARCH = r"""
as_nobody() { setpriv --reuid=nobody --regid=nogroup --clear-groups -- "$@"; }
cd /
{
  ps axww -o args=
  as_nobody sh -c 'cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null'
  journalctl --merge --no-pager --output=cat --all
  systemctl show '*' --no-pager
  cat /etc/systemd/system/*.service /etc/systemd/system/*/*.conf
  as_nobody find / /run /tmp /dev/shm /usr/local -xdev -path /usr -prune -o -type f -readable -print0 \
    2>/dev/null \
    | xargs --null grep --no-messages --text --fixed-strings --file=PATTERNS
} | grep --text --fixed-strings --file=PATTERNS --only-matching | sort --unique
"""


@pytest.fixture(scope="module")
def patterns(secrets: dict[str, str]) -> list[str]:
    """Return the secrets as they may appear: as they are, and encoded."""
    values = [
        line for name, value in secrets.items() if name != "tls_ca_certificate" for line in value.splitlines()
    ]
    values = [value for value in values if len(value) >= 24 and not value.startswith("-----")]
    return values + [base64.b64encode(value.encode()).decode().rstrip("=") for value in values]


@pytest.mark.parametrize("name", ["front", "back"])
def test_no_secret_is_readable(name: str, patterns: list[str], request: pytest.FixtureRequest) -> None:
    host: Host = request.getfixturevalue(name)
    file = "/root/patterns"
    host.check_output(f"install -m 0600 /dev/null {file} && printf '%s\\n' {shlex.join(patterns)} > {file}")
    try:
        assert host.check_output(SEARCH.replace("PATTERNS", file)) == ""
        # The search finds what it looks for.
        host.check_output(f"install -m 0644 {file} /var/tmp/readable")
        assert set(host.check_output(SEARCH.replace("PATTERNS", file)).split()) == set(patterns)
    finally:
        host.check_output(f"rm -f {file} /var/tmp/readable")


def test_no_secret_is_in_the_most_verbose_output(patterns: list[str]) -> None:
    """The first run of site.yml writes every file, and logs at -vvvv."""
    text = (ROOT / ".lab/molecule-security.log").read_text()
    assert "TASK [redis :" in text
    assert "EXEC " in text  # -vvv
    assert [pattern for pattern in patterns if pattern in text] == []
