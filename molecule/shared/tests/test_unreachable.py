"""status.yml reports a host that it cannot reach. This test runs late: others use several hosts."""

import re
import subprocess
from collections.abc import Callable

import pytest
from testinfra.host import Host


@pytest.mark.on("once")
def test_status_lists_an_unreachable_host(
    host: Host, labctl: Callable[[str, str], None], ansible: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    name = host.backend.hostname
    labctl("cut", name)
    try:
        done = ansible("ansible-playbook", "playbooks/status.yml")
    finally:
        labctl("mend", name)
    assert done.returncode == 0, done.stdout
    assert re.search(rf"^{name} +unreachable: ", done.stdout, re.MULTILINE)
    assert f"{name} cannot be reached: " in done.stdout
