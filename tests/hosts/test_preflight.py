"""Operator errors end the run with one sentence, before any host changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import ROOT, Lab, Run, make_environment, play

HOSTS: dict[str, dict[str, Any]] = {"db12": {}, "db13": {}}
BULLSEYE = (
    'ID=debian\nVERSION_ID="11"\nVERSION_CODENAME=bullseye\nPRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\n'
)

each_playbook = pytest.mark.parametrize("playbook", ["site.yml", "playbooks/redis.yml"])


@pytest.fixture(scope="session")
def digests(lab: Lab) -> dict[str, str]:
    """Return the hosts' digests before the first run."""
    return {host: lab.digest(host) for host in HOSTS}


@pytest.fixture
def unchanged(lab: Lab, digests: dict[str, str]) -> Iterator[None]:
    """Assert that the test changed no host."""
    yield
    assert {host: lab.digest(host) for host in HOSTS} == digests


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return a valid environment with both hosts in every group."""
    return make_environment(tmp_path / "environment", HOSTS)


def assert_refused(run: Run, *parts: str) -> None:
    """Assert that a run failed with exactly one sentence, which contains `parts`, and changed nothing."""
    assert run.status != 0
    assert len(run.sentences) == 1, run.output
    sentence = run.sentences[0]
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence
    assert "UNREACHABLE" not in run.output
    assert set(run.changed) == set(HOSTS), run.output
    assert not any(run.changed.values())


@contextmanager
def broken(lab: Lab, damage: str, repair: str) -> Iterator[None]:
    """Break host db13, and repair it afterwards."""
    lab.ssh("db13", damage)
    try:
        yield
    finally:
        lab.ssh("db13", repair)


VARIABLES = {
    "misspelt": ("redis_prot=6380", "redis_prot is unknown: did you mean redis_port"),
    "wrong type": ("redis_listen_addresses=a,b", "redis_listen_addresses must be a list, not 'a,b'"),
    "port": ("redis_port=99999999", "redis_port must be between 1 and 65535, not 99999999"),
    "digits": ('{"secret_key": 123456789012}', "secret_key must be a string: put it in quotes"),
    "address": ("private_address=db.internal", "private_address is db.internal, not an IPv4 or IPv6 address"),
    "public": (
        "private_address=9.9.9.9",
        "private_address is 9.9.9.9, a public address, and services for other hosts would listen on it",
    ),
}


@pytest.mark.parametrize(("variable", "part"), VARIABLES.values(), ids=VARIABLES.keys())
@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_a_wrong_variable(environment: Path, playbook: str, variable: str, part: str) -> None:
    assert_refused(play("-i", environment, playbook, "-e", variable), f"db12, db13: {part}")


@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_a_group_without_a_function(environment: Path, playbook: str) -> None:
    hosts = environment / "hosts.yml"
    hosts.write_text(hosts.read_text().replace("postgres:", "postgress:"))
    part = "db12, db13: the inventory has the group postgress, which has no function: did you mean postgres"
    assert_refused(play("-i", environment, playbook), part)


@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_an_environment_without_a_name(environment: Path, playbook: str) -> None:
    main = environment / "group_vars/all/main.yml"
    main.write_text(main.read_text().replace("environment_name: pytest\n", ""))
    assert_refused(play("-i", environment, playbook), "environment_name is not set: set it in")


@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_an_environment_without_secrets(environment: Path, playbook: str) -> None:
    (environment / "group_vars/all/vault.yml").unlink()
    assert_refused(
        play("-i", environment, playbook),
        "secret_redis_app_password",
        "secret_grafana_key",
        f"move {environment} below inventories, then make the environment's secrets with",
        "`make secrets ENV=environment`",
    )


@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_a_missing_vault_password(lab: Lab, tmp_path: Path, playbook: str) -> None:
    for name in ("ansible.cfg", "site.yml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("playbooks", "group_vars", "roles"):
        (tmp_path / name).symlink_to(ROOT / name)
    make_environment(tmp_path / "inventories/production", HOSTS, lab_name=lab.name)
    shutil.copy(ROOT / "inventories/vault-password.py", tmp_path / "inventories")
    run = play("-i", "inventories/production", playbook, root=tmp_path, FASTMETAL_VAULT_PASSWORD="")
    assert run.status != 0
    assert "put their password into inventories/production/.vault-password" in run.output
    assert "PLAY" not in run.output


@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_an_unreachable_host(lab: Lab, tmp_path: Path, playbook: str) -> None:
    hosts = HOSTS | {"db13": {"ansible_port": 1}}
    environment = make_environment(tmp_path / "environment", hosts, lab_name=lab.name)
    run = play("-i", environment, playbook)
    assert_refused(run, "db13: cannot be reached (", "Connection refused", "see that it is on")


@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_an_unsupported_release(lab: Lab, environment: Path, playbook: str) -> None:
    others = {"/usr/lib/os-release": BULLSEYE, "/etc/debian_version": "11.11\n"}
    damage = " && ".join(
        f"printf '%s' '{text}' > /run/{Path(path).name} && mount --bind /run/{Path(path).name} {path}"
        for path, text in others.items()
    )
    with broken(lab, damage, f"umount {' '.join(others)}"):
        run = play("-i", environment, playbook)
    assert_refused(run, "db13: runs Debian 11.11 with systemd: use a systemd host on Debian 12, Debian 13")


@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_a_full_disk(lab: Lab, environment: Path, playbook: str) -> None:
    with broken(lab, "mount -t tmpfs -o size=16m tmpfs /srv", "umount /srv"):
        run = play("-i", environment, playbook)
    assert_refused(run, "db13: 16 MiB are free below /, /var or /srv, and 2048 are needed: free some space")


@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_a_port_in_use(lab: Lab, environment: Path, playbook: str) -> None:
    listen = "systemd-run --quiet --unit=squatter python3 -m http.server 443"
    wait = "until ss --no-header --listening --tcp --numeric | grep -q ':443 '; do sleep 0.1; done"
    with broken(lab, f"{listen} && timeout 10 bash -c {wait!r}", "systemctl stop squatter"):
        run = play("-i", environment, playbook)
    assert_refused(run, "db13: port 443 is taken by python3 (squatter.service), and nginx.service needs it")


OLD_SERVER = (
    "Package: postgresql-15\nStatus: install ok installed\nArchitecture: all\nVersion: 15.1\n"
    "Maintainer: nobody <nobody@localhost>\nDescription: a server from before the upgrade\n"
)


@each_playbook
@pytest.mark.usefixtures("unchanged")
def test_refuses_a_database_of_the_previous_debian_release(
    lab: Lab, environment: Path, playbook: str
) -> None:
    """This happens after an upgrade of Debian in place."""
    playbook = playbook.replace("redis", "postgres")
    status, kept = "/var/lib/dpkg/status", "/run/dpkg-status"
    damage = f"cp -p {status} {kept} && printf '\\n%s' '{OLD_SERVER}' >> {status}"
    with broken(lab, damage, f"cp -p {kept} {status}"):
        run = play("-i", environment, playbook)
    assert_refused(
        run, "db13 has postgresql-15, and its release ships PostgreSQL 17", "pg_upgradecluster 15 main"
    )


# Run in pairs, one case per host.
APP: dict[str, tuple[dict[str, Any], str]] = {
    "setting": (
        {"app_settings": {"DATABSE_URL": "x"}},
        "The app knows no setting DATABSE_URL: correct app_settings",
    ),
    "secret": (
        {"app_secrets": {"sentry_dns": "x"}},
        "The app knows no setting SENTRY_DNS: correct app_settings",
    ),
    "known": (
        {"app_known_settings": ["COLOUR"], "app_settings": {"COLOR": "red"}, "app_secrets": {"key": "x"}},
        "The app knows no setting COLOR, KEY: correct app_settings",
    ),
    "gunicorn": (
        {"app_gunicorn": {"keep_alive": 3}},
        "Gunicorn has no setting keep_alive: correct app_gunicorn",
    ),
    "workers": (
        {"app_workers": 44},
        "may need 176 database connections during a release (2 instances of 44 workers with 2 each) and its"
        " share of postgresql_max_connections is 87: raise postgresql_max_connections, or lower app_workers",
    ),
    "pool": (
        {"app_settings": {"DATABASE_POOL_SIZE": 60}, "app_workers": 1},
        "may need 122 database connections during a release (2 instances of 1 workers with 61 each)",
    ),
    "no connections": (
        {"postgresql_max_connections": 14},
        "and its share of postgresql_max_connections is 1: raise postgresql_max_connections, or lower",
    ),
    "health path": ({"app_health_path": "ready"}, "app_health_path 'ready' is not a path: start it with"),
    "log level": (
        {"app_settings": {"LOG_LEVEL": "info"}},
        "The app refuses its settings: LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'.",
    ),
    "weak key": (
        {"secret_key": "changeme" * 8},
        "The app refuses its settings: SECRET_KEY is a well-known or guessable value: generate a random one.",
    ),
    "secret setting": (
        {"app_settings": {"SENTRY_DSN": "x", "ACCEPTED_SECRET_KEYS": "y"}},
        "app_settings has ACCEPTED_SECRET_KEYS, SENTRY_DSN, which every process of the service could read:"
        " put it into app_secrets as accepted_secret_keys, sentry_dsn.",
    ),
    "known secret": (
        {"app_known_settings": ["beacon_key"], "app_settings": {"BEACON_KEY": "x"}},
        "put it into app_secrets as beacon_key.",
    ),
    "request timeout": (
        {"app_settings": {"REQUEST_TIMEOUT": 20}},
        "REQUEST_TIMEOUT is 20, and an instance that stops waits 20 seconds (graceful_timeout) for in-flight"
        " requests: set app_settings.REQUEST_TIMEOUT above 0 and below that, or raise app_gunicorn.",
    ),
    "graceful timeout": (
        {"app_gunicorn": {"graceful_timeout": 1}},
        "REQUEST_TIMEOUT is 1, and an instance that stops waits 1 seconds (graceful_timeout)",
    ),
}
APP_CASES = list(APP)


@pytest.mark.parametrize(
    "cases", list(zip(APP_CASES[::2], APP_CASES[1::2], strict=True)), ids=lambda cases: ", ".join(cases)
)
@pytest.mark.usefixtures("unchanged")
def test_refuses_invalid_variables_of_the_app(tmp_path: Path, cases: tuple[str, str]) -> None:
    (first, one), (second, two) = (APP[case] for case in cases)
    run = play("-i", make_environment(tmp_path / "environment", {"db12": first, "db13": second}), "site.yml")
    assert run.status != 0
    sentences = run.sentences
    assert len(sentences) == 2, run.output
    assert any(one in sentence for sentence in sentences), run.output
    assert any(two in sentence for sentence in sentences), run.output
    assert not any(run.changed.values())


@pytest.mark.usefixtures("unchanged")
def test_refuses_a_python_older_than_the_app_requires(environment: Path, tmp_path: Path) -> None:
    tree = tmp_path / "app"
    shutil.copytree(ROOT / "app", tree / "app", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "requirements-app.txt").write_text((ROOT / "requirements-app.txt").read_text())
    text = (ROOT / "pyproject.toml").read_text()
    (tree / "pyproject.toml").write_text(
        text.replace('requires-python = ">=3.11"', 'requires-python = ">=3.12"')
    )
    run = play("-i", environment, "site.yml", "-e", f"app_source={tree}")
    assert [sentence.partition(".")[0] for sentence in run.sentences] == ["The app needs Python >=3"], (
        run.output
    )
    assert ">=3.12, and db12 has 3.11" in run.sentences[0]
    assert not any(run.changed.values())


@pytest.mark.usefixtures("unchanged")
def test_valid_hosts_pass(environment: Path) -> None:
    """So do an operator's own variables, and values computed from facts or roles' defaults."""
    own = {"preflight_own_variables": ["own_*"], "own_thing": 1}
    computed = {
        "app_workers": "{{ ansible_facts['processor_vcpus'] * 2 }}",
        "base_packages": "{{ nginx_page_policies | list }}",
    }
    main = environment / "group_vars/all/main.yml"
    main.write_text(main.read_text() + yaml.safe_dump(own | computed))
    run = play("-i", environment, "playbooks/preflight.yml", "--check")
    assert run.status == 0, run.output
    assert run.changed == dict.fromkeys(HOSTS, 0)


def test_unchanged_detects_a_change(lab: Lab, digests: dict[str, str]) -> None:
    """The fixture `unchanged` detects even a change of a timestamp."""
    lab.ssh("db12", "touch --reference=/etc/fstab /etc/fstab")
    changed = lab.digest("db12")
    assert changed != digests["db12"]
    digests["db12"] = changed
