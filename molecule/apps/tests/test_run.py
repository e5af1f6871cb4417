"""Secrets of the processes, one-off commands, and the directories that a service may write to."""

from __future__ import annotations

import json

import pytest

from tests.apps import APPS
from tests.apps.host import Apps
from tests.lab import wait_until

# Searches for values in everything that others can read, and in what systemd and the journal know.
SEARCH = r"""
import json, pathlib, subprocess, sys

secrets = {str(value) for value in json.load(open(sys.argv[1])).values() if len(str(value)) >= 16}
texts = {}
for command in (["journalctl", "--no-pager", "--output=cat"], ["systemctl", "show", "*"]):
    texts[command[0]] = subprocess.run(command, capture_output=True).stdout
paths = list(pathlib.Path("/proc").glob("[0-9]*/cmdline"))
for directory in ("/etc", "/srv", "/run", "/usr/local", "/var/lib"):
    files = (path for path in pathlib.Path(directory).rglob("*") if path.is_file())
    paths += [path for path in files if path.stat().st_mode & 0o044]
for path in paths:
    try:
        texts[str(path)] = path.read_bytes()
    except OSError:
        continue
found = [source for source, text in texts.items() for secret in secrets if secret.encode() in text]
print(len(secrets), *found)
"""


@pytest.mark.parametrize("service", sorted(APPS))
def test_secrets_are_in_the_processes_only(apps: Apps, service: str) -> None:
    given = json.loads(apps.ssh(f"cat /etc/{service}/credentials/environment"))
    environment = apps.environment(service)
    assert {name: environment[name] for name in given} == {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()
    }
    secret = f"/etc/{service}/credentials/environment"
    count, *found = apps.ssh(f"python3 - {secret} <<'END'\n{SEARCH}\nEND").split()
    assert int(count) >= 1
    assert found == []
    pid = f"$(systemctl show --value --property MainPID {service}@{apps.release(service)})"
    assert apps.ssh(f"runuser -u nobody -- cat /proc/{pid}/environ 2>&1 || true").endswith("denied")


def test_a_command_runs_with_the_credentials_of_its_service(apps: Apps) -> None:
    ran = apps.play("run", "notes", command="alembic current")
    assert ran.status == 0, ran.output
    revision = apps.ssh("runuser -u postgres -- psql -Atc 'SELECT version_num FROM alembic_version' notes")
    assert revision in ran.output
    assert "runs: alembic current" in apps.ssh("journalctl -t notes-run -o cat | tail -1")
    show = "import os; print(os.environ['DATABASE_URL'].split(':')[1])"
    assert apps.ssh(f'notes-run python -c "{show}"') == "//notes"
    assert apps.ssh(f'notes-run --owner python -c "{show}"') == "//notes_owner"
    failed = apps.play("run", "notes", command="python -c 'raise SystemExit(3)'")
    assert failed.status != 0
    assert "it ended with status 3." in failed.output


def test_a_service_writes_its_state_and_nothing_else(apps: Apps) -> None:
    apps.ssh("chat-run sh -c 'echo kept > media/kept.txt'")
    for path in ("code.txt", "/var/lib/chat/x", "/etc/chat/x"):
        assert "cannot create" in apps.ssh(f"chat-run sh -c 'echo x > {path}' 2>&1 || true")
    assert apps.ssh("stat -c '%U %G %a' /var/lib/chat/media/kept.txt") == "chat www-data 640"
    apps.ssh(f"chat-release switch {apps.release('chat').rpartition('.')[0]} --force")
    assert apps.ssh("chat-run cat media/kept.txt") == "kept"
    assert apps.ask("chat", "/media/kept.txt").body == b"kept\n"


def test_smoke_sends_the_checks_of_the_service(apps: Apps) -> None:
    ran = apps.play("smoke", "notes")
    assert ran.status == 0, ran.output
    wait_until(5, lambda: apps.ssh("tail -5 /var/log/nginx/access.log").count('"/api/users/login"') > 0)
