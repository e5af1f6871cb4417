"""The vault password client and playbooks/secrets.yml, run in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509

REPOSITORY = Path(__file__).resolve().parents[2]
VAULT = "group_vars/all/vault.yml"
PASSWORD_VARIABLE = "FASTMETAL_VAULT_PASSWORD"


def make_tree(root: Path) -> Path:
    """Copy the files that the client and the playbook need, with two environments without secrets."""
    shutil.copytree(REPOSITORY / "playbooks", root / "playbooks")
    for file in ("ansible.cfg", "inventories/vault-password.py"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, root / file)
    for environment in ("lab", "production"):
        (root / "inventories" / environment / "group_vars/all").mkdir(parents=True)
        (root / "inventories" / environment / "hosts.yml").write_text("all: {hosts: {host.invalid: }}\n")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a fresh copy of the tree."""
    return make_tree(tmp_path)


def environment(**variables: str) -> dict[str, str]:
    """Return the environment without Ansible's and the client's variables, and with the given ones."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "FASTMETAL_"))
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "ANSIBLE_NOCOLOR": "1", **variables}


def run_client(
    tree: Path, *arguments: str, cwd: str = ".", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the client from a process that has these arguments on its command line."""
    client = str(tree / "inventories/vault-password.py")
    # Two commands, because a shell with one command replaces itself and loses the command line.
    caller = ["bash", "-c", f"'{client}'; exit $?", "ansible-playbook", *arguments]
    return subprocess.run(
        caller, cwd=tree / cwd, env=environment(**variables), capture_output=True, text=True, check=False
    )


def write_passwords(tree: Path) -> None:
    for name in ("lab", "production"):
        (tree / "inventories" / name / ".vault-password").write_text(f"{name} password\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-i", "inventories/production", "site.yml"],
        ["-iinventories/production", "site.yml"],
        ["--inventory", "inventories/production/hosts.yml", "site.yml"],
        ["--inventory=inventories/production/", "site.yml"],
        ["-i", "{tree}/inventories/production", "-e", "@inventories/production/group_vars/all/vault.yml"],
        ["edit", "inventories/production/group_vars/all/vault.yml"],
        ["-i", "inventories/production", "-e", '{{"long": "' + 300 * "x" + '"}}', "site.yml"],
    ],
)
def test_the_callers_command_line_selects_the_environment(tree: Path, arguments: list[str]) -> None:
    write_passwords(tree)
    filled = [argument.format(tree=tree) for argument in arguments]
    assert run_client(tree, *filled, ANSIBLE_INVENTORY="inventories/lab").stdout == "production password\n"


def test_paths_are_relative_to_the_callers_directory(tree: Path) -> None:
    write_passwords(tree)
    answer = run_client(tree, "view", "group_vars/all/vault.yml", cwd="inventories/production")
    assert answer.stdout == "production password\n"


def test_ansible_inventory_selects_the_environment(tree: Path) -> None:
    write_passwords(tree)
    assert (
        run_client(tree, "site.yml", ANSIBLE_INVENTORY="inventories/production").stdout
        == "production password\n"
    )


def test_the_lab_is_the_default_and_the_choice_for_other_inventories(tree: Path, tmp_path: Path) -> None:
    write_passwords(tree)
    assert run_client(tree, "site.yml").stdout == "lab password\n"
    assert run_client(tree, "-i", str(tmp_path / "elsewhere"), "site.yml").stdout == "lab password\n"


def test_two_environments_in_one_command_are_refused(tree: Path) -> None:
    write_passwords(tree)
    answer = run_client(tree, "-i", "inventories/lab", "-i", "inventories/production")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "lab and production" in answer.stderr


def test_the_password_variable_applies_to_every_environment(tree: Path) -> None:
    write_passwords(tree)
    assert (
        run_client(tree, "-i", "inventories/production", **{PASSWORD_VARIABLE: "given"}).stdout == "given\n"
    )


def test_an_environment_without_secrets_gets_a_placeholder(tree: Path) -> None:
    assert run_client(tree, "-i", "inventories/production").stdout.strip()


def test_the_error_for_a_missing_password_names_its_file(tree: Path) -> None:
    (tree / "inventories/production" / VAULT).write_text("$ANSIBLE_VAULT;1.1;AES256\n")
    answer = run_client(tree, "-i", "inventories/production")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.count("\n") == 1
    assert "inventories/production/.vault-password" in answer.stderr
    assert PASSWORD_VARIABLE in answer.stderr


# --- playbooks/secrets.yml: a run takes seconds, so several tests share one set of secrets ---


def generate(tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["ansible-playbook", "playbooks/secrets.yml", *arguments]
    return subprocess.run(
        command, cwd=tree, env=environment(**variables), capture_output=True, text=True, check=False
    )


def vault(tree: Path, verb: str) -> str:
    """Run ansible-vault on production's secrets; the client gets the environment from the path."""
    command = ["ansible-vault", verb, f"inventories/production/{VAULT}"]
    return subprocess.run(
        command, cwd=tree, env=environment(), capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, str]]:
    """Return a tree with secrets for production, the output of the run with -vv, and the secrets."""
    tree = make_tree(tmp_path_factory.mktemp("tree"))
    run = generate(tree, "-e", "env=production", "-vv")
    assert run.returncode == 0, run.stdout + run.stderr
    return tree, run.stdout + run.stderr, yaml.safe_load(vault(tree, "view"))


def test_secrets_are_encrypted_with_mode_0600(generated: tuple[Path, str, dict[str, str]]) -> None:
    tree, _, _ = generated
    secrets = tree / "inventories/production" / VAULT
    assert secrets.read_text().startswith("$ANSIBLE_VAULT;1.1;AES256\n")
    for file in (secrets, tree / "inventories/production/.vault-password"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_no_secret_is_printed(generated: tuple[Path, str, dict[str, str]]) -> None:
    tree, output, secrets = generated
    password = (tree / "inventories/production/.vault-password").read_text().strip()
    certificate = secrets["tls_ca_certificate"]
    lines = {line for secret in secrets.values() if secret != certificate for line in secret.splitlines()}
    for line in (password, *(line for line in lines if not line.startswith("-----"))):
        assert line not in output


def test_every_secret_is_unique(generated: tuple[Path, str, dict[str, str]]) -> None:
    _, _, secrets = generated
    declared = yaml.safe_load((REPOSITORY / "roles/preflight/meta/argument_specs.yml").read_text())
    names = {name for name in declared["argument_specs"]["main"]["options"] if name.startswith("secret_")}
    assert len(names) > 1
    assert set(secrets) == {"tls_ca_key", "tls_ca_certificate"} | names
    assert len(set(secrets.values())) == len(secrets)
    assert re.fullmatch("[0-9a-f]{64}", secrets["secret_key"])
    for name in secrets.keys() - {"tls_ca_key", "tls_ca_certificate", "secret_key"}:
        assert re.fullmatch("[A-Za-z0-9]{48}", secrets[name])


def test_the_ca_signs_leaf_certificates_only(generated: tuple[Path, str, dict[str, str]]) -> None:
    _, _, secrets = generated
    certificate = x509.load_pem_x509_certificate(secrets["tls_ca_certificate"].encode())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert certificate.subject.rfc4514_string() == "CN=Fastmetal production CA"
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 3650


def test_a_complete_vault_is_not_rewritten(generated: tuple[Path, str, dict[str, str]]) -> None:
    tree, _, _ = generated
    secrets = tree / "inventories/production" / VAULT
    before = secrets.read_bytes()
    run = generate(tree, "-e", "env=production")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "has all its secrets already" in run.stdout
    assert secrets.read_bytes() == before


def test_missing_secrets_are_added_to_an_older_vault(
    generated: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> None:
    """Existing content stays unchanged, including the operator's own lines."""
    tree = tmp_path / "tree"
    shutil.copytree(generated[0], tree)
    vault(tree, "decrypt")
    secrets = tree / "inventories/production" / VAULT
    lines = [line for line in secrets.read_text().splitlines() if not line.startswith("secret_grafana_")]
    older = "\n".join([*lines, "# Mine.", "vault_smtp: !unsafe 'x{{y'", ""])
    secrets.write_text(older)
    vault(tree, "encrypt")
    run = generate(tree, "-e", "env=production", "-vv")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "has new secrets: secret_grafana_admin_password, secret_grafana_key." in " ".join(
        run.stdout.split()
    )
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    text = vault(tree, "view")
    assert text.startswith(older)
    added = yaml.safe_load(text.removeprefix(older))
    assert added.keys() == {"secret_grafana_admin_password", "secret_grafana_key"}
    assert not set(added.values()) & set(generated[2].values())
    assert not [value for value in added.values() if value in run.stdout + run.stderr]


def test_a_vault_with_another_password_is_not_changed(
    generated: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(generated[0], tree)
    secrets, password = (tree / "inventories/production" / name for name in (VAULT, ".vault-password"))
    before = secrets.read_bytes()
    for state in ("wrong", "away"):
        password.write_text("another\n") if state == "wrong" else password.unlink()
        run = generate(tree, "-e", "env=production")
        assert run.returncode != 0
        assert 'secrets of "production" cannot be decrypted: put their password into' in " ".join(
            run.stdout.split()
        )
        assert secrets.read_bytes() == before
    assert not password.exists()


def test_the_error_for_an_unknown_environment_lists_the_existing_ones(tree: Path) -> None:
    run = generate(tree, "-e", "env=prodution")
    assert run.returncode != 0
    assert 'no environment "prodution": give -e env=NAME with one of lab, production' in " ".join(
        (run.stdout + run.stderr).split()
    )
    assert not list(tree.glob(f"inventories/*/{VAULT}"))


def test_the_password_variable_encrypts_without_a_file(tree: Path) -> None:
    run = generate(tree, "-e", "env=lab", **{PASSWORD_VARIABLE: "given"})
    assert run.returncode == 0, run.stdout + run.stderr
    assert not (tree / "inventories/lab/.vault-password").exists()
    # Any Ansible command decrypts the environment's variables.
    command = ["ansible", "localhost", "-m", "ansible.builtin.debug", "-a", "var=secret_key"]
    shown = subprocess.run(
        command,
        cwd=tree,
        env=environment(**{PASSWORD_VARIABLE: "given"}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search("[0-9a-f]{64}", shown.stdout)
