"""Alert routing and inhibition, remote write, and the cost of monitoring on a host."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from testinfra.host import Host

from tests.remote import fetch

ROOT = Path(__file__).resolve().parents[3]
Run = Callable[..., subprocess.CompletedProcess[str]]
UNITS = (
    "prometheus-node-exporter",
    "fastmetal-host-metrics",
    "systemd-journal-upload",
    "fastmetal-forward-logs",
)


def seconds_used(host: Host) -> dict[str, float]:
    """Return the CPU seconds that each active unit has used."""
    shown = host.check_output(f"systemctl show --property=Id,ActiveState,CPUUsageNSec {' '.join(UNITS)}")
    units = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n")]
    return {
        unit["Id"].removesuffix(".service"): int(unit["CPUUsageNSec"]) / 1e9
        for unit in units
        if unit["ActiveState"] == "active"
    }


@pytest.fixture(scope="module", autouse=True)
def baseline(hosts: dict[str, Host]) -> tuple[float, dict[str, dict[str, float]]]:
    """Return the start time of the first test, and each host's CPU seconds by unit at that time."""
    return time.monotonic(), {name: seconds_used(host) for name, host in hosts.items()}


def examples() -> dict[str, Any]:
    """Return the variables of roles alertmanager and prometheus in the examples of docs/monitoring.md."""
    blocks = re.findall(
        r"^```yaml\n(.+?)^```$", (ROOT / "docs/monitoring.md").read_text(), re.MULTILINE | re.DOTALL
    )
    found: dict[str, Any] = {}
    for block in blocks:
        found |= yaml.safe_load(block)
    text = re.sub(r"\{\{ vault_\w+ \}\}", "https://example.com/vault", json.dumps(found))
    taken = {"alertmanager", "prometheus"}
    return {name: value for name, value in json.loads(text).items() if name.split("_")[0] in taken}


@pytest.fixture
def validate(host: Host, ansible: Run) -> Callable[[str, dict[str, Any]], subprocess.CompletedProcess[str]]:
    """Return a function that validates a role's files with its service's own tool, in check mode."""

    def check(role: str, variables: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        part = {"alertmanager": "service", "prometheus": "configure"}[role]
        # Results that the role's other task files would have registered.
        others = {"__prometheus_package": {"changed": False}, "__prometheus_service": {"status": {}}}
        words = ["-m", "include_role", "-a", f"name={role} tasks_from={part}"]
        words += ["-e", json.dumps(variables | others)]
        return ansible("ansible", host.backend.hostname, "--check", "--become", *words)

    return check


@pytest.mark.on("monitoring", "complete")
def test_documented_examples_pass_validation(
    validate: Callable[[str, dict[str, Any]], subprocess.CompletedProcess[str]],
) -> None:
    variables = examples()
    kinds = {kind for receiver in variables["alertmanager_receivers"].values() for kind in receiver}
    assert kinds == {f"{kind}_configs" for kind in ("email", "slack", "pagerduty", "telegram", "webhook")}
    assert {
        "prometheus_remote_write",
        "prometheus_rule_groups",
        "alertmanager_deadman_url",
        "alertmanager_maintenance",
    } <= variables.keys()
    for role in ("alertmanager", "prometheus"):
        done = validate(role, variables)
        assert done.returncode == 0, done.stdout
        assert "CHANGED" in done.stdout
    next(iter(variables["alertmanager_receivers"].values()))["slak_configs"] = []
    refused = validate("alertmanager", variables)
    assert refused.returncode != 0
    assert "censored" in refused.stdout


@pytest.mark.on("monitoring", "complete")
def test_a_silence_covers_one_host_until_it_ends(host: Host, variables: dict[str, Any], ansible: Run) -> None:
    url = f"http://{variables['alertmanager_listen_address']}"
    for instance in ("worked-on", "left-alone"):
        host.check_output(f"amtool --alertmanager.url={url} alert add Probe instance={instance}")

    def alerts() -> dict[str, str]:
        query = urlencode({"filter": 'alertname="Probe"'})
        found = json.loads(fetch(host, f"{url}/api/v2/alerts?{query}"))
        return {one["labels"]["instance"]: one["status"]["state"] for one in found}

    for words, states in (
        (
            ["-e", "duration=5m", "-e", "reason='new disk'", "-e", "host=worked-on"],
            {"worked-on": "suppressed", "left-alone": "active"},
        ),
        (["-e", "duration=0"], {"worked-on": "active", "left-alone": "active"}),
    ):
        done = ansible("ansible-playbook", "playbooks/silence.yml", *words)
        assert done.returncode == 0, done.stdout
        deadline = time.monotonic() + 20
        while (found := alerts()) != states and time.monotonic() < deadline:
            time.sleep(0.5)
        assert found == states


# Alerts that are active at the same time: name, labels, and the alert that inhibits it.
# In this order, as the alerts of one case are still active in the next one.
INHIBITIONS = (
    (
        ("RedisDown", {"instance": "queues", "server": "queue"}, None),
        ("CacheUnused", {"instance": "app", "service": "api"}, None),
    ),
    (
        ("HostDown", {"instance": "gone"}, None),
        ("MemoryShort", {"instance": "gone"}, "HostDown"),
        ("MemoryShort", {"instance": "there"}, None),
        ("ServiceDown", {"instance": "app", "service": "api"}, None),
        ("UnitFailed", {"instance": "app", "service": "api"}, "ServiceDown"),
        ("UnitFailed", {"instance": "app", "service": "shop"}, None),
        ("UnitFailed", {"instance": "there"}, None),
        ("PostgresDown", {"instance": "db"}, None),
        ("PostgresLocked", {"instance": "db"}, "PostgresDown"),
        ("RouteSlow", {"route": "/"}, "PostgresDown"),
        ("RedisDown", {"instance": "cache", "server": "cache"}, None),
        ("RedisEvicts", {"instance": "cache", "server": "cache"}, "RedisDown"),
        ("RedisQueueFull", {"instance": "cache", "server": "queue"}, None),
        ("RedisQueueFills", {"instance": "cache", "server": "queue"}, "RedisQueueFull"),
        ("CacheUnused", {"instance": "app", "service": "api"}, "RedisDown"),
        ("CertificateExpiresSoon", {"instance": "edge"}, None),
        ("CertificateExpires", {"instance": "edge"}, "CertificateExpiresSoon"),
        ("CertificateExpires", {"instance": "there"}, None),
        ("DiskFull", {"instance": "db", "mountpoint": "/"}, None),
        ("DiskFills", {"instance": "db", "mountpoint": "/"}, "DiskFull"),
        ("DiskFills", {"instance": "db", "mountpoint": "/srv"}, None),
        ("SloBurnsInHours", {"service": "api", "slo": "availability"}, None),
        ("SloBurnsInDays", {"service": "api", "slo": "availability"}, "SloBurnsInHours"),
        ("SloBurnsInDays", {"service": "api", "slo": "latency"}, None),
        ("SloBurnsInDays", {"service": "shop", "slo": "availability"}, None),
    ),
    (
        ("SiteDown", {"instance": "https://api", "service": "api"}, None),
        ("EdgeErrors", {"instance": "edge", "service": "api"}, "SiteDown"),
        ("EdgeErrors", {"instance": "edge", "service": "shop"}, None),
        ("SloBurnsInHours", {"service": "api", "slo": "availability"}, "SiteDown"),
    ),
)


@pytest.mark.on("monitoring", "complete")
@pytest.mark.parametrize("number", range(len(INHIBITIONS)))
def test_an_alert_inhibits_its_consequences_only(host: Host, variables: dict[str, Any], number: int) -> None:
    """The running Alertmanager inhibits the consequences of another alert, and nothing else."""
    url = f"http://{variables['alertmanager_listen_address']}"
    add = f"amtool --alertmanager.url={url} alert add --end=$(date -u -d '1 minute' +%FT%TZ)"
    for name, labels, _ in INHIBITIONS[number]:
        words = {"alertname": name, "drill": str(number), **labels}
        host.check_output(f"{add} {' '.join(f'{label}={value}' for label, value in words.items())}")
    query = urlencode({"filter": f'drill="{number}"'})
    found = json.loads(fetch(host, f"{url}/api/v2/alerts?{query}"))
    names = {one["fingerprint"]: one["labels"].pop("alertname") for one in found}
    for one in found:
        del one["labels"]["drill"]
    inhibitions = [(names[one["fingerprint"]], one["labels"], one["status"]["inhibitedBy"]) for one in found]
    seen = [(name, labels, names[by[0]] if by else None) for name, labels, by in inhibitions]
    assert sorted(seen, key=str) == sorted(INHIBITIONS[number], key=str)


# "lab" with the password of prometheus_secrets.
ACCOUNT = 'basic_auth_users: {lab: "$2b$04$abcdefghijklmnopqrstuuKNgbv480LXiBr6vd4pEtPhxopoQM/Aa"}'


@contextmanager
def second_prometheus(host: Host) -> Iterator[None]:
    """Run a second Prometheus at the remote write URL of the first one."""
    start = (
        "mkdir -p /run/store && echo {} > /run/store/config.yml && echo %s > /run/store/web.yml && "
        "systemd-run --quiet --collect --unit=store prometheus --config.file=/run/store/config.yml"
        " --web.config.file=/run/store/web.yml --web.listen-address=127.0.0.1:9091"
        " --web.enable-remote-write-receiver --storage.tsdb.path=/run/store/data"
    )
    host.check_output(start, ACCOUNT)
    yield
    host.check_output("systemctl stop store.service; rm -r /run/store")


@pytest.mark.on("collector")
def test_remote_write_sends_all_samples(host: Host, variables: dict[str, Any]) -> None:
    password = variables["prometheus_secrets"]["store"]
    count = sum(len(job["targets"]) for job in variables["prometheus_base_scrape_jobs"].values())
    script = (
        "import base64,sys,urllib.request as r\n"
        "token = base64.b64encode(f'lab:{sys.argv[2]}'.encode()).decode()\n"
        "request = r.Request(sys.argv[1], headers={'Authorization': f'Basic {token}'})\n"
        "print(r.urlopen(request, timeout=10).read().decode())"
    )
    url = f"http://127.0.0.1:9091/api/v1/query?{urlencode({'query': 'count by (environment) (up)'})}"
    with host.sudo(), second_prometheus(host):
        deadline = time.monotonic() + 60
        result: list[dict[str, Any]] = []
        while sum(int(one["value"][1]) for one in result) < count and time.monotonic() < deadline:
            time.sleep(0.5)
            answer = host.run(shlex.join(["python3", "-c", script, url, password]))
            result = json.loads(answer.stdout)["data"]["result"] if answer.succeeded else []
    assert [one["metric"] for one in result] == [{"environment": "lab"}]
    assert int(result[0]["value"][1]) >= count


def mebibytes(host: Host, unit: str) -> float:
    """Return the memory of a unit's main process in MiB; for a oneshot unit, its peak during a run."""
    script = (
        f"[ $(systemctl show -P Type {unit}) = oneshot ] && systemctl start --no-block {unit}; most=0;"
        f" for turn in $(seq 30); do pid=$(systemctl show -P MainPID {unit});"
        """ now=$(awk '/^VmHWM/ {print $2}' /proc/$pid/status 2>/dev/null || echo 0);"""
        " [ ${now:-0} -gt $most ] && most=$now; done; echo $most"
    )
    return int(host.check_output(script)) / 1024


@pytest.mark.on("app")
def test_monitoring_uses_little_cpu_and_memory(
    host: Host, baseline: tuple[float, dict[str, dict[str, float]]]
) -> None:
    """Exporters and log forwarding use less than 2 % of a core and 150 MiB."""
    name, (start, before) = host.backend.hostname, baseline
    # Long enough to include a scrape and a run of host_metrics.py.
    time.sleep(max(0.0, start + 20 - time.monotonic()))
    with host.sudo():
        used = seconds_used(host)
        elapsed = time.monotonic() - start
        shares = {unit: max(0.0, used[unit] - before[name].get(unit, 0)) / elapsed for unit in used}
        sizes = {unit: mebibytes(host, unit) for unit in shares}
    assert {"prometheus-node-exporter", "fastmetal-host-metrics"} <= shares.keys()
    assert all(size > 1 for size in sizes.values()), sizes
    assert sum(shares.values()) < 0.02, shares
    assert sum(sizes.values()) < 150, sizes
