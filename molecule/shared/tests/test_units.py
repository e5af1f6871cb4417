"""Every unit of the roles: its sandbox, its resource limits, how it stops, and who owns what it runs."""

import re
from typing import Any

import pytest
from testinfra.host import Host

# Units whose main process, or Redis' server, goes on without the process that was killed.
SUPERVISED = ("api@", "nginx.service", "postgresql@", "redis-server@")
# The highest exposure that systemd-analyze may find, by the beginning of a unit's name. A unit without an
# entry fails the test.
BOUNDS = {
    "chrony": 2.5,
    "fastmetal-acme": 3.0,
    "fastmetal-backup": 1.5,
    "fastmetal-bound-logs": 1.5,
    "fastmetal-exporters": 1.5,
    # Without a mount namespace, whose setup fails at times while a host boots.
    "fastmetal-firewall": 3.0,
    "fastmetal-forward-logs": 1.5,
    "fastmetal-host-metrics": 1.5,
    "fastmetal-passwords": 1.5,
    "fastmetal-pgbackrest": 1.5,
    "fastmetal-postgresql-timeouts": 1.5,
    "fastmetal-receive-logs": 1.5,
    "fastmetal-receive-wal": 1.5,
    # It starts the restored copy as a unit of its own.
    "fastmetal-restore-drill": 3.0,
    "grafana-server": 1.5,
    "nginx-drain@": 1.0,
    "nginx.service": 2.0,
    "postgresql@": 2.0,
    "prometheus": 1.5,
    "redis-server@": 1.2,
    "systemd-journal-remote": 2.5,
    "systemd-journal-upload": 2.5,
}
# Of each service: its instances and jobs, and the program that starts the live instance as root.
SERVICE_BOUNDS = {"{}@": 1.2, "{}-job-": 1.2, "{}-worker-": 1.2, "{}.service": 2.5}
# Operators' sessions run in that of sshd, and the other one mounts file systems: a sandbox would break both.
WHOLE_HOST = {"ssh.service", "fastmetal-mounts.service"}
# Units that must be among the judged ones, by group.
DEPLOYED = {
    "lab": ("chrony.service", "fastmetal-host-metrics.service", "prometheus-node-exporter.service"),
    "app": ("api@",),
    "edge": ("nginx.service",),
    "monitoring": ("prometheus.service", "prometheus-alertmanager.service"),
    "postgres": (*("postgresql@", "prometheus-postgres-exporter.service", "fastmetal-backups.service"),),
    "redis": ("redis-server@cache.service", "prometheus-redis-exporter.service"),
}
BACKUPS = ("fastmetal-backup@full.service", "fastmetal-restore-drill.service")
PULLED = ("fastmetal-pgbackrest.service",)
PULLS = ("fastmetal-pgbackrest.service", "fastmetal-receive-wal.service")
LIMITS = ("CPUWeight", "MemoryHigh", "MemoryMax", "TasksMax")


def services(host: Host) -> dict[str, dict[str, str]]:
    """Return the properties of the roles' services that are loaded or that a timer starts, by name."""
    properties = (
        f"Id,FragmentPath,DropInPaths,TimeoutStopUSec,OOMPolicy,OOMScoreAdjust,Type,{','.join(LIMITS)}"
    )
    timed = host.check_output("systemctl show '*.timer' --value --property=Unit").split()
    shown = host.check_output(f"systemctl show '*.service' {' '.join(timed)} --property={properties}")
    units = [dict(line.split("=", 1) for line in unit.splitlines()) for unit in shown.split("\n\n")]
    return {
        unit["Id"]: unit
        for unit in units
        if "/etc/systemd/system/" in unit["FragmentPath"] + unit["DropInPaths"]
        and unit["Id"] not in WHOLE_HOST
    }


def bound(unit: str, names: list[str]) -> float | None:
    """Return the highest exposure of a unit; names: those of the host's services."""
    known = BOUNDS | {
        pattern.format(name): most for name in names for pattern, most in SERVICE_BOUNDS.items()
    }
    return next((most for start, most in known.items() if unit.startswith(start)), None)


def test_the_exposure_of_every_unit_is_low(host: Host, variables: dict[str, Any]) -> None:
    # An instance runs only while an edge drains an upstream.
    drain = ["nginx-drain@x.service"] if variables["nginx_edge"] else []
    found = [*services(host), *drain]
    names = list(variables["preflight_services"])
    with host.sudo():
        reached = exposures(host, *found)
    faults = [
        f"{unit}: {level}, bound {bound(unit, names)}"
        for unit, level in reached.items()
        if not (most := bound(unit, names)) or level > most
    ]
    expected = [unit for group in variables["group_names"] for unit in DEPLOYED.get(group, ())]
    if variables["pgbackrest_repository_host"]:
        expected += PULLED
    elif variables["exporter_host_backups"]:
        expected += [*BACKUPS, *(PULLS if variables["pgbackrest_databases"] else ())]
    assert [start for start in expected if not any(unit.startswith(start) for unit in found)] == []
    assert reached.keys() == set(found)
    assert faults == []


@pytest.mark.on("monitoring")
def test_the_exposure_of_grafana_is_low(host: Host) -> None:
    """Judge the drop-in beside a plain unit: Debian has no package of Grafana."""
    file = "/run/judged/grafana-server.service"
    with host.sudo():
        unit = "[Service]\\nUser=grafana\\nExecStart=/bin/true\\n"
        drop_ins = "/etc/systemd/system/grafana-server.service.d/*.conf"
        host.check_output(f"mkdir -p /run/judged && (printf '{unit}' && cat {drop_ins}) > {file}")
        reached = exposures(host, "--offline=true", file)
        assert reached["grafana-server.service"] <= BOUNDS["grafana-server"]
        host.check_output("rm -r /run/judged")


def exposures(host: Host, *units: str) -> dict[str, float]:
    """Return what systemd-analyze finds of each unit as it is deployed, from 0 to 10."""
    report = host.check_output(f"systemd-analyze security --no-pager {' '.join(units)}")
    return {unit: float(level) for unit, level in re.findall(r"exposure level for (\S+): ([\d.]+)", report)}


def test_every_unit_has_limits(host: Host) -> None:
    """Read the properties: the limits do not apply on a lab host, `make test-vm` sees them at work."""
    unlimited = [
        f"{name}: {limit}"
        for name, unit in services(host).items()
        for limit in LIMITS
        if unit[limit] in ("infinity", "[not set]")
    ]
    assert unlimited == []


@pytest.mark.on("complete")
def test_memory_that_runs_out_ends_jobs_before_services_and_postgres_last(host: Host) -> None:
    order = {name: int(unit["OOMScoreAdjust"]) for name, unit in services(host).items()}
    last = min(order, key=lambda name: order[name])
    assert last.startswith("postgresql@")
    jobs = [score for name, score in order.items() if name.startswith(("api-job-", "api-worker-"))]
    instances = [score for name, score in order.items() if name.startswith("api@")]
    assert min(jobs) > max(instances) > 0
    slices = host.check_output("systemctl show services.slice --property=MemoryHigh,MemoryMax")
    assert "infinity" not in slices


def test_no_service_takes_for_ever_to_stop(host: Host) -> None:
    found = services(host)
    assert found
    assert {name for name, unit in found.items() if unit["TimeoutStopUSec"] == "infinity"} == set()


@pytest.mark.on("complete")
def test_one_killed_process_does_not_end_a_supervised_service(host: Host) -> None:
    """Read the property: a memory limit of one service does not apply on a lab host."""
    policies = {
        name: unit["OOMPolicy"] for name, unit in services(host).items() if name.startswith(SUPERVISED)
    }
    assert {name.partition("@")[0] for name in policies} == {
        "api",
        "nginx.service",
        "postgresql",
        "redis-server",
    }
    assert set(policies.values()) == {"continue"}


@pytest.mark.on("app")
def test_a_service_owns_nothing_that_it_runs(host: Host, variables: dict[str, Any]) -> None:
    name = variables["app_name"]
    code = (
        f"/srv/{name} /etc/{name} /usr/local/lib/{name}-release /usr/local/sbin/{name}-* /etc/systemd/system"
    )
    with host.sudo():
        owned = host.check_output(f"find {code} ! -type l ! -user root")
        # The modes and the access lists count, as the kernel judges them for the account.
        script = f"find {code} ! -type l -writable 2>/dev/null || true"
        writable = host.check_output(f"setpriv --reuid={name} --regid={name} --init-groups sh -c '{script}'")
    assert owned == ""
    assert writable == ""
