"""Every unit that the roles write stops within a time, and survives the kernel's kill of one worker."""

import pytest
from testinfra.host import Host

# Units whose main process, or Redis' server, goes on without the process that was killed.
SUPERVISED = ("api@", "nginx.service", "postgresql@", "redis-server@")


def services(host: Host) -> dict[str, dict[str, str]]:
    """Return the properties of each service of the roles that is loaded, by its name."""
    properties = "Id,FragmentPath,DropInPaths,TimeoutStopUSec,OOMPolicy,Type"
    shown = host.check_output(f"systemctl show '*.service' --property={properties}")
    units = [dict(line.split("=", 1) for line in unit.splitlines()) for unit in shown.split("\n\n")]
    return {
        unit["Id"]: unit
        for unit in units
        if "/etc/systemd/system/" in unit["FragmentPath"] + unit["DropInPaths"]
    }


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
