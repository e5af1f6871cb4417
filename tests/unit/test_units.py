"""The lines that the filters of units write."""

import pytest
from ansible_collections.fastmetal.metal.plugins.filter.redis import redis_files
from ansible_collections.fastmetal.metal.plugins.filter.units import (
    RESOURCES,
    SANDBOX,
    memory_high,
    unit_resources,
    unit_sandbox,
)


def test_a_unit_without_options_of_its_own_has_every_option_of_the_sandbox() -> None:
    lines = unit_sandbox({})
    assert {line.partition("=")[0] for line in lines} == set(SANDBOX)
    assert "NoNewPrivileges=yes" in lines


def test_an_option_of_a_unit_replaces_that_of_the_sandbox() -> None:
    lines = unit_sandbox({"PrivateUsers": "no", "ProtectProc": None, "ReadWritePaths": "/run"})
    assert "PrivateUsers=no" in lines
    assert "ReadWritePaths=/run" in lines
    assert not [line for line in lines if line.startswith("ProtectProc=")]


def test_options_that_systemd_adds_up_start_with_an_empty_assignment() -> None:
    lines = unit_sandbox(
        {"CapabilityBoundingSet": "CAP_KILL", "SystemCallFilter": ["@system-service", "~@clock"]}
    )
    assert [line for line in lines if line.startswith("CapabilityBoundingSet")] == [
        "CapabilityBoundingSet=",
        "CapabilityBoundingSet=CAP_KILL",
    ]
    assert [line for line in lines if line.startswith("SystemCallFilter")] == [
        "SystemCallFilter=",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@clock",
    ]
    assert unit_sandbox({}).count("CapabilityBoundingSet=") == 1


def test_the_last_layer_of_limits_wins() -> None:
    lines = unit_resources("job", {"MemoryMax": "25%"}, {"CPUWeight": 100, "OOMPolicy": None})
    assert lines == [
        "CPUWeight=100",
        "MemoryHigh=24.5%",
        "MemoryMax=25%",
        "OOMScoreAdjust=500",
        "TasksMax=512",
    ]


def test_the_kernel_ends_jobs_first_and_postgres_last() -> None:
    order = sorted(RESOURCES, key=lambda kind: int(RESOURCES[kind]["OOMScoreAdjust"]))
    assert order[0] == "postgres"
    assert order[-1] == "job"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("20%", "19.6%"),
        ("15%", "14.7%"),
        ("1G", "1003M"),
        ("512M", "513802K"),
        ("1000", "980"),
        ("infinity", "infinity"),
    ],
)
def test_memory_is_reclaimed_shortly_before_the_limit(limit: str, expected: str) -> None:
    assert memory_high(limit) == expected


def test_an_instance_of_redis_may_copy_all_of_its_data_for_a_snapshot() -> None:
    instance = {"name": "cache", "maxmemory_mb": 100}
    files = redis_files([instance], [], "[Service]\n", "", {"CPUWeight": 500})
    drop_in = next(file["content"] for file in files if file["path"].endswith("/unit.conf"))
    assert "MemoryMax=328M\n" in drop_in
    assert "CPUWeight=500\n" in drop_in
