"""Hosts and variables for the tests of a scenario; MOLECULE_SCENARIO_NAME names the scenario."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from testinfra.host import Host
from xdist.scheduler import LoadScopeScheduling

from tests.edge import Site, read

ROOT = Path(__file__).resolve().parents[3]
SCENARIO = os.environ.get("MOLECULE_SCENARIO_NAME", "default")
LAB = ROOT / ".lab" / f"molecule-{SCENARIO}"
INVENTORY = ROOT / "molecule" / SCENARIO / "inventory"

# A scenario named after a playbook runs only that playbook's tests; every other scenario runs all tests.
TESTS = {
    "base": {"test_base.py", "test_firewall.py", "test_ssh.py", "test_tls.py"},
    "postgres": {"test_postgresql.py"},
    "redis": {"test_redis.py"},
    "app": {"test_app.py", "test_workers.py"},
    "edge": {
        *(path.name for path in Path(__file__).parent.glob("test_nginx*.py")),
        "test_maintenance.py",
    },
    "monitoring": {
        "test_monitoring.py",
        "test_alerting.py",
        "test_dashboards.py",
        "test_grafana.py",
        "test_logs.py",
        "test_status_page.py",
    },
}

# Internal variables: entries of the environment merged with those of the roles.
MERGED = (
    *("__nginx_own_headers", "__nginx_sites"),
    *("__postgresql_databases", "__postgresql_roles", "__redis_users"),
)
FACTS = ["!all", "!min", "distribution", "hardware", "platform", "python", "service_mgr"]
WRITE_VARIABLES = {
    "ansible.builtin.copy": {
        "content": "{{ dict(variable_names"
        " | zip(query('ansible.builtin.vars', *variable_names, default=''))) | to_json }}",
        "dest": "{{ variables_directory }}/{{ inventory_hostname }}.json",
        "mode": "0600",
    },
    "delegate_to": "localhost",
    "no_log": True,
}


def pytest_configure(config: pytest.Config) -> None:
    """Configure testinfra with the hosts of the scenario's lab."""
    config.addinivalue_line("markers", "on(*words): run on the hosts of which every word is true")
    state = LAB / "state.json"
    if not state.exists():
        raise pytest.UsageError(f"lab {LAB.name} is down: run `molecule converge -s {SCENARIO}` first")
    config.option.hosts = ",".join(f"ssh://{name}" for name in json.loads(state.read_text())["hosts"])
    # One SSH connection per host; a socket path has a length limit that the checkout's path may exceed.
    sockets = tempfile.TemporaryDirectory(prefix="fastmetal-")
    config.add_cleanup(sockets.cleanup)
    ssh_config = Path(sockets.name) / "config"
    multiplexing = f"  ControlMaster auto\n  ControlPersist 5\n  ControlPath {sockets.name}/%C\n"
    ssh_config.write_text((LAB / "ssh_config").read_text() + multiplexing)
    config.option.ssh_config = str(ssh_config)


def built_playbooks(playbook: Path) -> set[str]:
    """Return the names of a playbook and of all playbooks that it imports."""
    imports = [play.get("ansible.builtin.import_playbook") for play in yaml.safe_load(playbook.read_text())]
    return {playbook.stem}.union(*(built_playbooks(playbook.parent / name) for name in imports if name))


def groups() -> dict[str, set[str]]:
    """Return {group: hosts} of the scenario's inventory."""
    children = yaml.safe_load((INVENTORY / "hosts.yml").read_text())["all"]["children"]
    return {group: set(content["hosts"]) for group, content in children.items()}


def complete_hosts() -> set[str]:
    """Return the hosts in every group; they need no other host."""
    return set.intersection(*groups().values())


def hosts_by_word() -> dict[str, set[str]]:
    """Return {word of the `on` marker: hosts it is true of}; a word is true only if its playbook ran."""
    known = groups()
    edge, app, postgres = known["edge"], known["app"], known["postgres"]
    redis, monitoring = known["redis"], known["monitoring"]
    first = {min(monitoring)}
    collected = yaml.safe_load((INVENTORY / "group_vars/all/main.yml").read_text()).get("logs_collect", False)
    words = {
        "edge": ("edge", edge),
        "app": ("app", app),
        "postgres": ("postgres", postgres),
        "redis": ("redis", redis),
        "monitoring": ("monitoring", monitoring),
        "nginx": ("edge", edge | app | monitoring),
        "edge_beside_app": ("edge", edge & app),
        "edge_apart": ("edge", edge - app),
        "collector": ("monitoring", first if collected else set()),
        # Tests that do not depend on the topology run on the hosts in every group, one per Debian release.
        "complete": ("converge", complete_hosts()),
        "fleet": ("converge", set().union(*known.values()) - complete_hosts()),
        # Long tests that do not depend on the host.
        "once": ("monitoring", first & complete_hosts()),
        # Servers with clients on other hosts.
        "postgres_tls": ("postgres", postgres if app - postgres else set()),
        "redis_tls": ("redis", redis if app - redis else set()),
    }
    built = built_playbooks(ROOT / "molecule" / SCENARIO / "converge.yml")
    return {word: hosts if playbook in built else set() for word, (playbook, hosts) in words.items()}


class HostScheduling(LoadScopeScheduling):
    """Keep the tests of a host in one process, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        found = re.search(r"ssh://(\w+)", nodeid)
        return found[1] if found else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> HostScheduling:
    """Test hosts side by side."""
    return HostScheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Deselect tests of other playbooks or for other hosts; run status first, disconnections last."""
    words = hosts_by_word()
    kept: list[pytest.Function] = []
    deselected: list[pytest.Function] = []
    for item in items:
        host: Any = item.callspec.params["_testinfra_host"]
        required = {word for mark in item.iter_markers("on") for word in mark.args}
        if unknown := required - words.keys():
            raise pytest.UsageError(f"{item.nodeid}: the marker `on` has unknown words: {', '.join(unknown)}")
        applies = all(host.backend.hostname in words[word] for word in required)
        # Molecule passes all files to pytest, so files of other playbooks are deselected here.
        own = SCENARIO not in TESTS or item.path.name in TESTS[SCENARIO]
        (kept if applies and own else deselected).append(item)
    config.hook.pytest_deselected(items=deselected)
    # Other tests leave failed releases and alerts, and need every host.
    order = {"test_status.py": 0, "test_unreachable.py": 2, "test_reboot.py": 3}
    items[:] = sorted(kept, key=lambda item: order.get(item.path.name, 1))


@pytest.fixture(scope="session")
def ansible_on_all() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs an Ansible command on the scenario's hosts."""

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        plain = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **plain}
        # Molecule sets it, and it overrides ANSIBLE_NOCOLOR.
        environment.pop("ANSIBLE_FORCE_COLOR", None)
        words = [command, "-i", str(INVENTORY), *arguments]
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def limit(host: Host) -> tuple[str, ...]:
    """Return Ansible's arguments that limit a run to the host under test and the hosts it works with.

    A complete host works alone, and its tests run in parallel with those of other hosts.
    """
    name = host.backend.hostname
    return ("--limit", name) if name in complete_hosts() else ()


@pytest.fixture(scope="module")
def ansible(
    limit: tuple[str, ...], ansible_on_all: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs an Ansible command within `limit`."""
    return lambda command, *arguments: ansible_on_all(command, *limit, *arguments)


@pytest.fixture(scope="session")
def all_variables(
    ansible_on_all: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, Any]]:
    """Return {host: {variable: value}} of all role variables, resolved by one Ansible run."""
    roles = sorted(path.name for path in ROOT.glob("roles/*") if path.name != "lab")
    names = [
        name
        for role in roles
        for name in yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text())[
            "argument_specs"
        ]["main"]["options"]
        if name != "app_source"  # The tasks set it.
    ]
    directory = tmp_path_factory.mktemp("variables")
    play_variables = {
        "variable_names": ["group_names", *MERGED, *names],
        "variables_directory": str(directory),
    }
    # Listed for their variables; the tag `never` keeps their tasks from running.
    play = {
        "hosts": "all",
        "gather_facts": False,
        "pre_tasks": [{"ansible.builtin.setup": {"gather_subset": FACTS}}],
        "roles": [{"role": role, "tags": ["never"]} for role in roles],
        "tasks": [WRITE_VARIABLES],
        "vars": play_variables,
    }
    playbook = directory / "play.yml"
    playbook.write_text(yaml.safe_dump([play]))
    done = ansible_on_all("ansible-playbook", str(playbook))
    assert done.returncode == 0, done.stdout
    hosts = json.loads((LAB / "state.json").read_text())["hosts"]
    return {name: json.loads((directory / f"{name}.json").read_text()) for name in hosts}


@pytest.fixture(scope="module")
def variables(host: Host, all_variables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the variables of the host under test."""
    return all_variables[host.backend.hostname]


@pytest.fixture(scope="module")
def site(host: Host, variables: dict[str, Any]) -> Site:
    """Return a client of the public site of the host under test."""
    names = [name for name in variables["nginx_server_names"] if "*" not in name]
    ca = read(host, variables["nginx_ca_certificate"])
    return Site(address=variables["private_address"], name=names[0], ca=ca, settings=variables)


@pytest.fixture(scope="module")
def listeners(variables: dict[str, Any]) -> list[tuple[str, int]]:
    """Return (address, port) of the listeners for other hosts and for this host's monitoring."""
    pairs = [listen.rsplit(":", 1) for listen in variables["nginx_backend_listen"]]
    return [(address.strip("[]"), int(port)) for address, port in pairs]


@pytest.fixture
def find_host(
    host: Host, all_variables: dict[str, dict[str, Any]], pytestconfig: pytest.Config
) -> Callable[[str], Host]:
    """Return a function that finds a host of a group: the host under test if possible, else the first."""

    def find(group: str) -> Host:
        names = [name for name, known in all_variables.items() if group in known["group_names"]]
        if host.backend.hostname in names:
            return host
        return testinfra.get_host(f"ssh://{names[0]}", ssh_config=pytestconfig.option.ssh_config)

    return find


@pytest.fixture(scope="session")
def hosts(all_variables: dict[str, dict[str, Any]], pytestconfig: pytest.Config) -> dict[str, Host]:
    """Return the scenario's hosts by name."""
    ssh_config = pytestconfig.option.ssh_config
    return {name: testinfra.get_host(f"ssh://{name}", ssh_config=ssh_config) for name in all_variables}


@pytest.fixture
def labctl() -> Callable[[str, str], None]:
    """Return a function that runs a labctl verb on a host."""

    def run(verb: str, name: str) -> None:
        command = [sys.executable, str(ROOT / "roles/lab/files/labctl.py"), verb, LAB.name, name]
        subprocess.run(command, check=True, capture_output=True)

    return run
