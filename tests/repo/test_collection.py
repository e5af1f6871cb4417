"""The repository as a collection: the archive's contents, and its roles in another project's playbook."""

from __future__ import annotations

import datetime
import grp
import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.lab import ROOT

CONTENTS = {
    *("CHANGELOG.md", "CONTRIBUTING.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md"),
    *("docs", "group_vars", "meta", "playbooks", "plugins", "requirements.yml", "roles", "site.yml"),
}
SECRET = {"vault.yml", ".vault-password"}


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a tool of this environment and return its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    path = f"{Path(sys.executable).parent}:{variables.pop('PATH', os.environ['PATH'])}"
    own = {"ANSIBLE_HOME": str(cwd / "home"), "ANSIBLE_REMOTE_TEMP": str(cwd / "remote-tmp")}
    environment = {**kept, **own, "PATH": path, "ANSIBLE_NOCOLOR": "1", **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a collections path with the installed archive and its dependencies only."""
    folder = tmp_path_factory.mktemp("collections")
    run("ansible-galaxy", "collection", "build", "--output-path", folder, ROOT, cwd=folder)
    (archive,) = folder.glob("fastmetal-metal-*.tar.gz")
    # --force, because the checkout is on the search path, too.
    install = ("ansible-galaxy", "collection", "install", "--offline", "--force", "--no-deps")
    run(*install, "-p", folder, archive, cwd=folder)
    bundled = util.find_spec("ansible_collections.community.crypto")
    assert bundled
    assert bundled.submodule_search_locations
    site = Path(bundled.submodule_search_locations[0]).parents[1]
    manifest = json.loads((folder / "ansible_collections/fastmetal/metal/MANIFEST.json").read_text())
    for name in manifest["collection_info"]["dependencies"]:
        namespace, _, collection = name.partition(".")
        link = folder / "ansible_collections" / namespace / collection
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(site / namespace / collection)
    return folder


def test_the_archive_has_no_tests_tools_or_environments(collections: Path) -> None:
    installed = collections / "ansible_collections/fastmetal/metal"
    assert {path.name for path in installed.iterdir()} == CONTENTS
    assert {path.suffix for path in (installed / "docs").rglob("*") if path.is_file()} == {
        ".md",
        ".sql",
        ".yml",
    }
    assert not [path for path in installed.rglob("*") if path.suffix == ".pyc" or path.name in SECRET]


def test_dependencies_are_those_of_requirements_yml() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    required = yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
    assert galaxy["dependencies"] == {entry["name"]: entry["version"] for entry in required}


def make_ca() -> tuple[str, str]:
    """Return the certificate and the key of a new CA, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Foreign CA")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(encoding, private, serialization.NoEncryption())
    return certificate.public_bytes(encoding).decode(), pem.decode()


def test_another_projects_playbook_uses_two_roles(collections: Path, tmp_path: Path) -> None:
    """Role tls issues a certificate; role exporter needs root, so it runs in check mode."""
    commands = tmp_path / "bin"
    commands.mkdir()
    # The test machine may not run systemd.
    state = r"ActiveState=inactive\nUnitFileState=\nNeedDaemonReload=no\n\n"
    (commands / "systemctl").write_text(
        f"#!/bin/sh\nfor word; do case $word in *.service) printf '{state}';; esac; done\n"
    )
    (commands / "systemctl").chmod(0o755)
    certificate, key = make_ca()
    directory = tmp_path / "tls"
    directory.mkdir(mode=0o755)
    play = {
        "name": "Use roles of the collection",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "ansible_facts": {"distribution_release": "trixie"},
            "tls_ca_certificate": certificate,
            "tls_ca_key": key,
            "tls_certificates": [{"name": "host", "common_name": "web1", "sans": ["DNS:web1"]}],
        },
        "roles": [
            {"role": "fastmetal.metal.tls"},
            {"role": "fastmetal.metal.exporter", "check_mode": True},
        ],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    # Only root can install their packages.
    overrides = {
        "__tls_directory": str(directory),
        "__tls_packages": [],
        "__tls_key_group": grp.getgrgid(os.getgid()).gr_name,
        "__exporter_packages": [],
    }
    output = run(
        *("ansible-playbook", "play.yml", "-e", json.dumps(overrides)),
        cwd=tmp_path,
        ANSIBLE_COLLECTIONS_PATH=str(collections),
        # Otherwise Ansible could find the checkout in this environment instead of the archive.
        ANSIBLE_COLLECTIONS_SCAN_SYS_PATH="false",
        PATH=f"{commands}:{os.environ['PATH']}",
    )
    issued = x509.load_pem_x509_certificate((directory / "host.crt").read_bytes())
    assert issued.issuer.rfc4514_string() == "CN=Foreign CA"
    assert "failed=0" in output
    assert "TASK [fastmetal.metal.exporter : Run the exporters]" in output
