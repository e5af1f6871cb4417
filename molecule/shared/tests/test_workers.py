"""Deployed workers: a killed worker loses its requests in flight only; metrics stay right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.on("app", "complete")

# Opens requests with incomplete bodies, kills the worker with the most of them, and reads the metrics before
# and after; then kills all workers.
KILL_WORKERS = r"""
import http.client, json, os, pathlib, re, select, signal, socket, sys, time

path, main, metrics, token = sys.argv[1:]

def connect():
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    connection.sock.connect(path)
    return connection

def metric_values():
    connection = connect()
    connection.request("GET", "/metrics", headers={"Connection": "close"})
    text = connection.getresponse().read().decode()
    found = {}
    for name, value in re.findall(r"^(\w+)(?:{.*})? (\S+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0) + float(value)
    names = ("http_requests_total", "http_requests_in_flight", "cache_up")
    return {name: found.get(name, 0) for name in names} | {"pids": text.count('pid="')}

def workers():
    return pathlib.Path(f"/proc/{main}/task/{main}/children").read_text().split()

def slots():
    return sorted({file.stem.rpartition("_")[2] for file in pathlib.Path(metrics).glob("*.db")})

def kill(victim):
    others = len(workers())
    os.kill(int(victim), signal.SIGKILL)
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline and (victim in workers() or len(workers()) < others):
        time.sleep(0.1)

def wait_for(in_flight):
    # A new worker exports cache_up after its first use of the cache.
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline:
        found = metric_values()
        if (found["http_requests_in_flight"], found["cache_up"]) == (in_flight, 1):
            break
        time.sleep(0.1)
    return found

held = []
for _ in range(8):
    connection = connect()
    connection.putrequest("POST", "/api/v1/products")
    connection.putheader("Authorization", f"Bearer {token}")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    held.append(connection)
    time.sleep(0.05)
old = workers()
victim = max(old, key=lambda pid: len(os.listdir(f"/proc/{pid}/fd")))
result = {"before": metric_values(), "slots": slots()}
kill(victim)
lost = len(select.select([c.sock for c in held], [], [], 0)[0])
result.update(lost=lost, after=wait_for(len(held) - lost + 1), old=old, new=workers())
for connection in held:
    connection.close()
for victim in workers():
    kill(victim)
result.update(last=wait_for(1), left=slots())
print(json.dumps(result))
"""

# Opens more connections than the workers accept, counts the rejected ones, and then sends requests.
EXCEED_CONNECTIONS = r"""
import http.client, json, resource, select, socket, sys, time

path, most, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
crowd = []
for _ in range(most + more):
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(20)
    one.connect(path)
    crowd.append(one)
waiting, rejected = select.poll(), {}
by_number = {one.fileno(): one for one in crowd}
for one in crowd:
    waiting.register(one, select.POLLIN)
deadline = time.monotonic() + 10
while len(rejected) < more and time.monotonic() < deadline:
    for number, _ in waiting.poll(200):
        rejected[number] = by_number[number].recv(1000).decode()
        waiting.unregister(number)
for one in crowd:
    one.close()
statuses = []
for _ in range(20):
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("GET", "/health/live", headers={"Connection": "close"})
    statuses.append(connection.getresponse().status)
print(json.dumps([sorted(set(rejected.values())), len(rejected), statuses]))
"""


def test_a_killed_worker_is_replaced_and_its_gauges_vanish(host: Host, variables: dict[str, Any]) -> None:
    name = variables["app_name"]
    instance = host.check_output(f"basename $(readlink /srv/{name}/current)")
    main = host.check_output(f"systemctl show --value --property=MainPID {name}@{instance}.service")
    token = host.check_output(f"/usr/local/sbin/{name}-manage token --subject verify --scope products:write")
    result = json.loads(
        host.check_output(
            "python3 -c %s %s %s %s %s",
            KILL_WORKERS,
            f"/run/{name}/{name}.sock",
            main,
            f"/run/{name}/metrics",
            token,
        )
    )
    before, after = result["before"], result["after"]
    assert before["http_requests_in_flight"] == 9
    assert result["lost"] > 0
    assert len(result["new"]) == len(result["old"])
    assert set(result["new"]) != set(result["old"])
    assert after["http_requests_in_flight"] == 9 - result["lost"]
    assert after["http_requests_total"] >= before["http_requests_total"]
    assert after["cache_up"] == 1
    # Metrics of the database belong to the host, not to a worker.
    assert after["pids"] == 0
    # All workers have been replaced; their counters persist in the files that the new workers took over.
    assert result["last"]["http_requests_total"] >= after["http_requests_total"]
    assert result["last"]["http_requests_in_flight"] == 1
    assert len(result["slots"]) >= len(result["old"])
    assert result["left"] == result["slots"]
    unit = f"{name}@{instance}.service"
    assert host.check_output(f"systemctl show --value --property=MainPID {unit}") == main


def test_workers_reject_connections_over_their_limit(host: Host, variables: dict[str, Any]) -> None:
    name = variables["app_name"]
    main = f"systemctl show --value --property=MainPID '{name}@*.service'"
    workers = len(host.check_output(f"cat /proc/$({main})/task/*/children").split())
    path, capacity = f"/run/{name}/{name}.sock", f"{workers * 1000}"
    answers, rejected, afterwards = json.loads(
        host.check_output("python3 -c %s %s %s 50", EXCEED_CONNECTIONS, path, capacity)
    )
    assert rejected >= 50
    assert [answer.splitlines()[0] for answer in answers] == ["HTTP/1.1 503 Service Unavailable"]
    assert "Retry-After: 1" in answers[0]
    assert afterwards == [200] * 20
