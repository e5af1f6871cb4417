"""The workers as deployed: one that dies costs what it had in hand, and leaves no wrong figure, no file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.on("app", "complete")

# Opens requests whose bodies never end, kills the worker that holds most, and reads the metrics around that;
# then kills some more.
KILL = r"""
import http.client, json, os, pathlib, re, select, signal, socket, sys, time

path, main, metrics, token = sys.argv[1:]

def connect():
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    connection.sock.connect(path)
    return connection

def figures():
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

def places():
    return sorted({file.stem.rpartition("_")[2] for file in pathlib.Path(metrics).glob("*.db")})

def kill(victim):
    others = len(workers())
    os.kill(int(victim), signal.SIGKILL)
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline and (victim in workers() or len(workers()) < others):
        time.sleep(0.1)

def wait_for(in_flight):
    # A new worker says that it has a cache once it has tried.
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline:
        found = figures()
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
result = {"before": figures(), "places": places()}
kill(victim)
lost = len(select.select([c.sock for c in held], [], [], 0)[0])
result.update(lost=lost, after=wait_for(len(held) - lost + 1), old=old, new=workers())
for connection in held:
    connection.close()
for victim in workers():
    kill(victim)
result.update(last=wait_for(1), left=places())
print(json.dumps(result))
"""

# Opens more connections than the workers may have, counts who is sent away, and asks again afterwards.
CROWD = r"""
import http.client, json, resource, select, socket, sys, time

path, most, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
crowd = []
for _ in range(most + more):
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(20)
    one.connect(path)
    crowd.append(one)
waiting, told = select.poll(), {}
by_number = {one.fileno(): one for one in crowd}
for one in crowd:
    waiting.register(one, select.POLLIN)
deadline = time.monotonic() + 10
while len(told) < more and time.monotonic() < deadline:
    for number, _ in waiting.poll(200):
        told[number] = by_number[number].recv(1000).decode()
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
print(json.dumps([sorted(set(told.values())), len(told), statuses]))
"""


def test_a_killed_worker_is_replaced_and_leaves_no_gauge(host: Host, variables: dict[str, Any]) -> None:
    name = variables["app_name"]
    instance = host.check_output(f"basename $(readlink /srv/{name}/current)")
    main = host.check_output(f"systemctl show --value --property=MainPID {name}@{instance}.service")
    token = host.check_output(f"/usr/local/sbin/{name}-manage token --subject verify --scope products:write")
    about = json.loads(
        host.check_output(
            "python3 -c %s %s %s %s %s",
            KILL,
            f"/run/{name}/{name}.sock",
            main,
            f"/run/{name}/metrics",
            token,
        )
    )
    before, after = about["before"], about["after"]
    assert before["http_requests_in_flight"] == 9
    assert about["lost"] > 0
    assert len(about["new"]) == len(about["old"])
    assert set(about["new"]) != set(about["old"])
    assert after["http_requests_in_flight"] == 9 - about["lost"]
    assert after["http_requests_total"] >= before["http_requests_total"]
    assert after["cache_up"] == 1
    # The database's figures are the host's, not one worker's.
    assert after["pids"] == 0
    # Every worker has been replaced by now: what they counted is there, in files that others took over.
    assert about["last"]["http_requests_total"] >= after["http_requests_total"]
    assert about["last"]["http_requests_in_flight"] == 1
    assert len(about["places"]) >= len(about["old"])
    assert about["left"] == about["places"]
    unit = f"{name}@{instance}.service"
    assert host.check_output(f"systemctl show --value --property=MainPID {unit}") == main


def test_a_worker_has_no_more_connections_than_it_may(host: Host, variables: dict[str, Any]) -> None:
    name = variables["app_name"]
    main = f"systemctl show --value --property=MainPID '{name}@*.service'"
    workers = len(host.check_output(f"cat /proc/$({main})/task/*/children").split())
    path, most = f"/run/{name}/{name}.sock", f"{workers * 1000}"
    answers, sent_away, afterwards = json.loads(
        host.check_output("python3 -c %s %s %s 50", CROWD, path, most)
    )
    assert sent_away >= 50
    assert [answer.splitlines()[0] for answer in answers] == ["HTTP/1.1 503 Service Unavailable"]
    assert "Retry-After: 1" in answers[0]
    assert afterwards == [200] * 20
