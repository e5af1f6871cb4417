"""What is asked of a tool from its own host, which need not have curl."""

from __future__ import annotations

import shlex

from testinfra.host import Host

SCRIPT = "import sys,urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode())"


def fetch(host: Host, url: str) -> str:
    """Return the body that an address answers with to the host; an error status fails the test."""
    return str(host.check_output(shlex.join(["python3", "-c", SCRIPT, url])))
