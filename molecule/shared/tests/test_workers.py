"""The workers as deployed: one that dies costs what it had in hand, and leaves no wrong figure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.on("app")

# Opens requests whose bodies never end, kills the worker that holds most, and reads the metrics around that.
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
    return {name: found[name] for name in names}

def workers():
    return pathlib.Path(f"/proc/{main}/task/{main}/children").read_text().split()

def files(pid):
    return sorted(file.name for file in pathlib.Path(metrics).glob(f"gauge_live*_{pid}.db"))

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
result = {"before": figures(), "files": files(victim)}
os.kill(int(victim), signal.SIGKILL)
deadline = time.monotonic() + 12
while time.monotonic() < deadline and (victim in workers() or len(workers()) < len(old)):
    time.sleep(0.1)
lost = len(select.select([c.sock for c in held], [], [], 0)[0])
# A new worker says that it has a cache once it has tried.
while time.monotonic() < deadline:
    after = figures()
    if (after["http_requests_in_flight"], after["cache_up"]) == (len(held) - lost + 1, 1):
        break
    time.sleep(0.1)
result.update(lost=lost, after=after, left=files(victim), old=old, new=workers())
print(json.dumps(result))
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
            f"/run/{name}-{instance}",
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
    assert about["files"]
    assert not about["left"]
    unit = f"{name}@{instance}.service"
    assert host.check_output(f"systemctl show --value --property=MainPID {unit}") == main
