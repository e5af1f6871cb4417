"""bin/fastmetal turns each verb into one command, and merges the journals of several hosts."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import queue
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.lab import ROOT

HOSTS: dict[str, dict[str, Any]] = {
    "web1": {"groups": ["edge", "app"], "address": "192.0.2.11", "port": "", "key": ""},
    "web2": {"groups": ["edge", "app"], "address": "192.0.2.12", "port": 2222, "key": "/keys/web"},
    "data1": {"groups": ["postgres"], "address": "192.0.2.21", "port": "", "key": ""},
    "mon1": {"groups": ["monitoring"], "address": "192.0.2.31", "port": "", "key": ""},
}
CONSOLES = {
    "grafana": {"port": 3000, "path": "/grafana/"},
    "prometheus": {"port": 9090, "path": "/"},
    "alertmanager": {"port": 9093, "path": "/"},
}


@pytest.fixture(scope="module")
def cli() -> ModuleType:
    """Return bin/fastmetal as a module."""
    loader = importlib.machinery.SourceFileLoader("fastmetal_cli", str(ROOT / "bin/fastmetal"))
    spec = importlib.util.spec_from_loader("fastmetal_cli", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastmetal_cli"] = module
    loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the checkout, without a terminal and a chosen environment."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("FASTMETAL_ENVIRONMENT", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)


@pytest.fixture
def fleet(cli: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the look-up of connections by four hosts of the service shop."""
    common = {
        "user": "ops",
        "arguments": "-o ProxyJump=gate",
        "service": "shop",
        "services": ["shop"],
        "database_port": 5432,
    }
    hosts = {name: {**common, **host, "consoles": CONSOLES} for name, host in HOSTS.items()}
    monkeypatch.setattr(cli, "connections", lambda _: hosts)
    return hosts


def command_of(cli: ModuleType, line: str) -> str:
    """Return the command of a command line, as --show prints it."""
    options = cli.options_of(shlex.split(line))
    return shlex.join(options.command(options))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("apply -e production -- --check --diff", "site.yml --check --diff"),
        ("-e production preflight", "playbooks/preflight.yml"),
        ("deploy -e production -s shop", "playbooks/deploy.yml -e service=shop"),
        (
            "-e production -s shop deploy -- -e app_source=v2",
            "playbooks/deploy.yml -e service=shop -e app_source=v2",
        ),
        ("rollback -e production", "playbooks/rollback.yml"),
        ("rollback -e production 1.10", "playbooks/rollback.yml -e app_rollback_release=1.10"),
        ("restart -e production -- --limit web1", "playbooks/restart.yml --limit web1"),
        ("smoke -e production", "playbooks/smoke.yml"),
        ("status -e production", "playbooks/status.yml"),
        (
            "status -e production --json --strict",
            "playbooks/status.yml -e status_format=json -e status_strict=true",
        ),
        ("maintenance -e production off", "playbooks/maintenance.yml -e maintenance=off"),
        (
            "maintenance -e production on 'Back at \"six\".'",
            "playbooks/maintenance.yml -e maintenance=on"
            """ -e '{"maintenance_message": "Back at \\"six\\"."}'""",
        ),
        ("remove-service -e production -s shop", "playbooks/remove_service.yml -e service=shop"),
        (
            "logs -e production --request 9f86d081884c7d65 --hours 200",
            "playbooks/logs.yml -e request_id=9f86d081884c7d65 -e hours=200",
        ),
        (
            "run -e production -s shop -- python -m shop.clean 'two words'",
            "playbooks/run.yml -e service=shop"
            """ -e '{"command": "python -m shop.clean '"'"'two words'"'"'"}'""",
        ),
        (
            "run -e production --host web2 --owner -- python",
            "playbooks/run.yml -e command=python -e run_as_owner=true --limit web2",
        ),
    ],
)
def test_a_verb_is_a_playbook(cli: ModuleType, line: str, expected: str) -> None:
    assert command_of(cli, line) == f"ansible-playbook -i inventories/production {expected}"


def test_every_playbook_of_a_verb_exists(cli: ModuleType) -> None:
    verbs = cli.parser()._subparsers._group_actions[0].choices.values()
    named = {verb.get_default("playbook") for verb in verbs} - {None}
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_environment_may_be_a_path_or_come_from_a_variable(
    cli: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert command_of(cli, "status").startswith("ansible-playbook -i inventories/lab ")
    monkeypatch.setenv("FASTMETAL_ENVIRONMENT", "staging")
    assert command_of(cli, "status").startswith("ansible-playbook -i inventories/staging ")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert command_of(cli, "status -e ./there").startswith("ansible-playbook -i there ")


def test_an_unknown_environment_is_refused_with_the_known_names(cli: ModuleType) -> None:
    with pytest.raises(
        cli.FaultError, match="no environment prod: give -e with one of lab, production, staging"
    ):
        command_of(cli, "deploy -e prod")


@pytest.mark.usefixtures("fleet")
def test_psql_has_the_rights_of_the_serving_role_or_the_owner(cli: ModuleType) -> None:
    command = command_of(cli, "psql")
    assert command.startswith("ssh -o ProxyJump=gate ops@192.0.2.21 'sudo systemd-run ")
    assert "--setenv=PGOPTIONS=-crole=shop " in command
    assert command.endswith("psql --port=5432 --dbname=shop'")
    assert "--setenv=PGOPTIONS=-crole=shop_owner " in command_of(cli, "psql --owner")


@pytest.mark.usefixtures("fleet")
def test_an_interactive_verb_takes_a_terminal_if_there_is_one(
    cli: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command_of(cli, "console").endswith("'sudo /usr/local/sbin/shop-run python'")
    assert command_of(cli, "console --owner").endswith("'sudo /usr/local/sbin/shop-run --owner python'")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert command_of(cli, "console --host web2") == (
        "ssh -o ProxyJump=gate -t -i /keys/web -p 2222 ops@192.0.2.12 'sudo /usr/local/sbin/shop-run python'"
    )
    assert " --pty " in command_of(cli, "psql")


@pytest.mark.usefixtures("fleet")
def test_a_host_outside_the_group_is_refused(cli: ModuleType) -> None:
    with pytest.raises(
        cli.FaultError, match="data1 is no host of the group app: give --host with one of web1, web2"
    ):
        command_of(cli, "console --host data1")


def test_a_choice_among_services_is_needed(cli: ModuleType, fleet: dict[str, Any]) -> None:
    with pytest.raises(cli.FaultError, match="There is no service nope: give -s with one of shop"):
        command_of(cli, "psql -s nope")
    for host in fleet.values():
        host["services"] = ["api", "shop"]
    for line in ("console", "psql"):
        with pytest.raises(cli.FaultError, match="There are several services: give -s with one of api, shop"):
            command_of(cli, line)
    assert "shop-run" in command_of(cli, "console -s shop")
    assert "9090" in command_of(cli, "tunnel prometheus")


def test_a_group_without_hosts_is_refused(cli: ModuleType, fleet: dict[str, Any]) -> None:
    del fleet["mon1"]
    with pytest.raises(cli.FaultError, match="lab has no host in the group monitoring"):
        command_of(cli, "tunnel grafana")


@pytest.mark.usefixtures("fleet")
def test_a_tunnel_leads_to_loopback_of_the_monitoring_host(
    cli: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "-L 3000:127.0.0.1:3000 ops@192.0.2.31" in command_of(cli, "tunnel grafana")
    assert "http://127.0.0.1:3000/grafana/ " in capsys.readouterr().err
    assert "-L 8001:127.0.0.1:9090 " in command_of(cli, "tunnel prometheus --port 8001")
    assert "http://127.0.0.1:8001/ " in capsys.readouterr().err


@pytest.mark.usefixtures("fleet")
def test_logs_read_the_journal_of_every_app_host(cli: ModuleType) -> None:
    options = cli.options_of(["logs", "-f", "-n", "5", "--", "-p", "warning"])
    commands = cli.logs(options)
    assert list(commands) == ["web1", "web2"]
    journal = "journalctl --no-pager --output=json --lines=5 -p warning --follow _UID=$(id -u shop)"
    assert journal in commands["web1"][-1]


def test_run_needs_a_command(cli: ModuleType) -> None:
    with pytest.raises(cli.FaultError, match="Give the command after --"):
        command_of(cli, "run")


def record(cli: ModuleType, host: str, second: float, **fields: Any) -> Any:
    """Return a journal entry of a host."""
    return cli.Record(int(second * 1_000_000), host, fields)


def test_entries_of_hosts_are_merged_by_time(cli: ModuleType) -> None:
    found: queue.Queue[Any] = queue.Queue()
    entries = [record(cli, "web1", 1), record(cli, "web1", 4), None, record(cli, "web2", 2), None]
    for entry in entries:
        found.put(entry)
    merged = [entry.microseconds for entry in cli.merged(found, 2, None)]
    assert merged == [1_000_000, 2_000_000, 4_000_000]


def test_a_live_entry_waits_for_an_earlier_one_and_is_shown_before_the_end(cli: ModuleType) -> None:
    found: queue.Queue[Any] = queue.Queue()
    found.put(record(cli, "web1", 2))
    threading.Timer(0.1, found.put, [record(cli, "web2", 1)]).start()
    merged = cli.merged(found, 2, 0.4)
    assert [next(merged).host, next(merged).host] == ["web2", "web1"]


def test_lines_show_time_host_program_and_message(cli: ModuleType) -> None:
    line = {"time": "…", "level": "ERROR", "message": "Failed", "order": 7, "exc_info": "Traceback …"}
    entry = record(cli, "web1", 3661.5, MESSAGE=json.dumps(line), SYSLOG_IDENTIFIER="shop", PRIORITY="3")
    plain = cli.render(entry, ["web1", "data10"], coloured=False)
    assert plain == "01:01:01.500  web1    shop  ERROR Failed order=7\nTraceback …"
    coloured = cli.render(entry, ["web1", "data10"], coloured=True)
    assert "\033[36mweb1  \033[0m" in coloured
    assert "\033[31mERROR Failed" in coloured


@pytest.mark.parametrize(
    ("message", "text"), [("plain", "plain"), ([98, 255], "b\ufffd"), ('{"a": 1}', '{"a": 1}'), (None, "")]
)
def test_other_lines_are_shown_as_they_are(cli: ModuleType, message: Any, text: str) -> None:
    assert cli.text_of({"MESSAGE": message}) == text


def test_a_lost_connection_is_named(cli: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    entry = json.dumps({"__REALTIME_TIMESTAMP": "1000000", "MESSAGE": "up"})
    assert cli.follow({"web1": ["echo", entry], "web2": ["sh", "-c", "exit 255"]}, live=False) == 255
    output = capfd.readouterr()
    assert output.out == "00:00:01.000  web1  -  up\n"
    assert output.err == "web2: the connection ended with status 255.\n"


def test_show_prints_the_command_and_does_not_run_it() -> None:
    words = [sys.executable, str(ROOT / "bin/fastmetal"), "deploy", "-e", "production", "--show"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "ansible-playbook -i inventories/production playbooks/deploy.yml\n"


def test_an_installation_without_ansible_is_named(cli: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "CHECKOUT", Path("/nowhere"))
    with pytest.raises(cli.FaultError, match=r"Ansible is not installed in /nowhere/\.venv: run `make venv`"):
        cli.prepare_environment()
