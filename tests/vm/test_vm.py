"""`site.yml` on a real kernel: limits, address filters, the clock, durable writes and a reboot.

A lab host is a container, on which none of this has an effect. The machine emulates its processor in
software, so a run takes an hour or more; `make test-vm` starts it.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab import ROOT, clean_environment
from tests.vm.machine import CONTROL_NODE, Machine, build

INVENTORY = ROOT / "tests/vm/inventory"
# Emulation makes everything ten times as slow.
pytestmark = pytest.mark.timeout(7200)
EAT = "x = []\nwhile True:\n    x.append(bytearray(1 << 24))\n    x[-1][::4096] = b'x' * (1 << 12)\n"
PSQL = "runuser -u postgres -- psql --no-psqlrc --quiet --tuples-only --no-align"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Return the machine after a run of site.yml."""
    build()
    machine = Machine()
    machine.start()
    try:
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(INVENTORY), "site.yml"]
        log = ROOT / ".lab/vm/site.log"
        with log.open("w") as output:
            done = subprocess.run(
                command, cwd=ROOT, env=clean_environment(ANSIBLE_TIMEOUT="120"), stdout=output, stderr=output
            )
        assert done.returncode == 0, log.read_text()[-3000:]
        yield machine
    finally:
        machine.cut_power()


def show(machine: Machine, unit: str, name: str) -> str:
    return machine.answer(f"systemctl show --property={name} --value '{unit}'")


def postgres_unit(machine: Machine) -> str:
    return machine.answer("systemctl list-units --plain --no-legend 'postgresql@*'").split()[0]


def test_the_kernel_has_every_setting(machine: Machine) -> None:
    settings = yaml.safe_load((ROOT / "roles/base/defaults/main.yml").read_text())["base_default_sysctl"]
    read = machine.answer(f"sysctl {shlex.join(settings)}").splitlines()
    assert dict(line.replace("\t", " ").split(" = ") for line in read) == {
        name: str(value) for name, value in settings.items()
    }


def test_every_limit_is_that_of_the_kernel(machine: Machine) -> None:
    unit = postgres_unit(machine)
    group = show(machine, unit, "ControlGroup")
    assert machine.answer(f"cat /sys/fs/cgroup{group}/memory.max") == show(machine, unit, "MemoryMax")
    assert machine.answer(f"cat /sys/fs/cgroup{group}/pids.max") == show(machine, unit, "TasksMax")
    assert machine.answer(f"cat /proc/{show(machine, unit, 'MainPID')}/oom_score_adj") == "-900"
    assert int(machine.answer("cat /sys/fs/cgroup/services.slice/memory.max")) < 3 << 30


def test_a_command_that_allocates_ends_alone(machine: Machine) -> None:
    unit = postgres_unit(machine)
    pids = {one: show(machine, one, "MainPID") for one in (unit, "ssh.service", "redis-server@cache.service")}
    instance = machine.answer("systemctl list-units --plain --no-legend 'api@*'").split()[0]
    pids[instance] = show(machine, instance, "MainPID")
    done = machine.ssh(f"api-run python -c {shlex.quote(EAT)}", check=False)
    assert done.returncode
    killed = machine.answer("journalctl --boot --no-pager --output=cat --grep='oom-kill' | tail -5")
    assert "api-run" in killed
    assert {one: show(machine, one, "MainPID") for one in pids} == pids
    assert machine.answer(f"{PSQL} -c 'SELECT 1'") == "1"
    # None of the workers of the service was the victim.
    assert show(machine, instance, "NRestarts") == "0"


def test_a_worker_that_leaks_ends_before_postgres(machine: Machine) -> None:
    """Allocate in the cgroup of the instance, as a worker that leaks does."""
    unit = postgres_unit(machine)
    before = show(machine, unit, "MainPID")
    instance = machine.answer("systemctl list-units --plain --no-legend 'api@*'").split()[0]
    group = show(machine, instance, "ControlGroup")
    inside = f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs; python3 -c {shlex.quote(EAT)}"
    assert machine.ssh(f"sh -c {shlex.quote(inside)}", check=False).returncode == 137
    assert show(machine, unit, "MainPID") == before
    assert show(machine, instance, "ActiveState") == "active"


def test_a_unit_reaches_no_address_that_it_does_not_list(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"import socket; socket.create_connection(({CONTROL_NODE!r}, {port}), 20)"
        connect = f"python3 -c {shlex.quote(script)}"
        assert machine.ssh(connect).returncode == 0
        group = show(machine, "fastmetal-host-metrics.service", "ControlGroup")
        inside = f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs; exec {connect}"
        refused = machine.ssh(f"sh -c {shlex.quote(inside)}", check=False)
    assert refused.returncode
    assert "PermissionError" in refused.stderr or "TimeoutError" in refused.stderr


def test_mount_points_have_their_options(machine: Machine) -> None:
    for path in ("/dev/shm", "/tmp"):  # noqa: S108
        options = machine.answer(f"findmnt --noheadings --output OPTIONS {path}").split(",")
        assert {"nosuid", "nodev"} <= set(options), path


def test_apparmor_confines_chrony(machine: Machine) -> None:
    assert machine.answer("cat /proc/$(pidof -s chronyd)/attr/current").endswith("chronyd (enforce)")


def test_auditd_records_a_change_of_the_configuration(machine: Machine) -> None:
    machine.ssh("touch /etc/fastmetal/audited && rm /etc/fastmetal/audited")
    assert "/etc/fastmetal/audited" in machine.answer("ausearch --input-logs --key fastmetal --interpret")


def test_aide_reports_a_program_that_was_added(machine: Machine) -> None:
    machine.ssh("touch /usr/local/sbin/added")
    # The reference has what site.yml has written.
    check = "aide --config /etc/aide/aide.conf --limit /usr/local --check"
    found = machine.ssh(check, check=False).stdout
    machine.ssh("rm /usr/local/sbin/added")
    assert re.findall(r"^f[+]+: (\S+)$", found, re.MULTILINE) == ["/usr/local/sbin/added"]


class TimeServer(threading.Thread):
    """Answer NTP requests with a time that is ahead by some seconds."""

    def __init__(self, ahead: float) -> None:
        super().__init__(daemon=True)
        self.ahead = ahead
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def run(self) -> None:
        while True:
            request, client = self.socket.recvfrom(1024)
            now = time.time() + self.ahead + 2208988800
            stamp = struct.pack("!II", int(now), int(now % 1 * 2**32))
            # Version 4, mode 4 (server), stratum 2; the client's transmit time comes back as the origin.
            head = struct.pack("!BBBb8x", 0x24, 2, request[2], -20)
            self.socket.sendto(head + b"TEST" + stamp + request[40:48] + stamp + stamp, client)


def test_chrony_sets_the_clock_without_root(machine: Machine) -> None:
    server = TimeServer(ahead=3600)
    server.start()
    source = f"server {CONTROL_NODE} port {server.port} iburst minpoll 2 maxpoll 2 prefer trust"
    machine.ssh(f"echo '{source}' > /etc/chrony/sources.d/test.sources && chronyc reload sources")
    try:
        assert machine.answer("ps -o user= -C chronyd | sort -u") == "_chrony"
        deadline = time.monotonic() + 600
        while float(machine.answer("date +%s")) < time.time() + 1800:
            assert time.monotonic() < deadline, machine.answer("chronyc -n sources; chronyc tracking")
            machine.ssh("chronyc makestep", check=False)
            time.sleep(5)
    finally:
        machine.ssh("rm /etc/chrony/sources.d/test.sources; chronyc reload sources", check=False)
        machine.ssh(f"date --set=@{int(time.time())}")


def test_a_committed_row_survives_a_power_failure(machine: Machine) -> None:
    machine.ssh(f"{PSQL} -c 'CREATE TABLE durable (n int)'")
    loop = (
        f'n=0; while :; do n=$((n+1)); {PSQL} -c "INSERT INTO durable VALUES ($n)" && echo $n || exit 1; done'
    )
    writer = subprocess.Popen([*machine.login, loop], stdout=subprocess.PIPE, text=True)
    time.sleep(60)
    machine.cut_power()
    acknowledged = [int(line) for line in writer.communicate(timeout=120)[0].split()]
    machine.start()
    deadline = time.monotonic() + 600
    while machine.ssh(f"{PSQL} -c 'SELECT 1'", check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(5)
    stored = json.loads(machine.answer(f"{PSQL} -c 'SELECT json_agg(n) FROM durable'"))
    assert acknowledged
    assert set(acknowledged) <= set(stored)
    machine.ssh(f"{PSQL} -c 'DROP TABLE durable'")


def test_everything_runs_again_after_a_reboot(machine: Machine) -> None:
    machine.reboot()
    deadline = time.monotonic() + 1200
    while (state := machine.ssh("systemctl is-system-running", check=False).stdout.strip()) != "running":
        assert time.monotonic() < deadline, machine.answer(
            "systemctl --failed --no-pager; systemctl list-jobs"
        )
        assert state != "degraded", machine.answer("systemctl --failed --no-pager")
        time.sleep(10)
    url = "https://10.0.2.15/health/ready"
    assert machine.answer(f"python3 -c {shlex.quote(GET.format(url))}") == "200"
    test_the_kernel_has_every_setting(machine)
    test_every_limit_is_that_of_the_kernel(machine)


GET = (
    "import ssl, urllib.request; c = ssl.create_default_context(cafile='/etc/fastmetal/tls/ca.crt');"
    " print(urllib.request.urlopen('{}', context=c, timeout=60).status)"
)
