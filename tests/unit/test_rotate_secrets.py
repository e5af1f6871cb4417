"""The file of a vault after a step of a rotation."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible_collections.fastmetal.metal.plugins.action.rotate_secrets import ActionModule


@pytest.mark.parametrize("label", ["default", "prod"])
def test_the_file_keeps_its_password_its_label_and_its_mode(tmp_path: Path, label: str) -> None:
    others, own = VaultSecret(b"others"), VaultSecret(b"own")
    file = tmp_path / "vault.yml"
    file.write_bytes(VaultLib().encrypt("secret_key: before\n", own, label))
    file.chmod(0o640)
    header = file.read_text().splitlines()[0]
    arguments = {
        "vault": str(file),
        "kinds": ["signing_key"],
        "step": "begin",
        "environment": "lab",
        "overlap": 60,
    }
    loader = MagicMock(_vault=VaultLib([("others", others), (label, own)]))
    task = MagicMock(args=arguments, async_val=0, check_mode=False)
    result = ActionModule(task, MagicMock(), MagicMock(), loader, MagicMock(), MagicMock()).run(task_vars={})
    assert result["changed"]
    assert (file.read_text().splitlines()[0], file.stat().st_mode & 0o777) == (header, 0o640)
    assert b"secret_key" in VaultLib([(label, own)]).decrypt(file.read_bytes())
