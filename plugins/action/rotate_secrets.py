"""Write the next step of a rotation into the vault of an environment."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.parsing.vault import parse_vaulttext_envelope
from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.module_utils.rotation import RotationError, rotate


class ActionModule(ActionBase):
    """Action `rotate_secrets`: vault (path), kinds, step (begin, switch or end), environment and overlap."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Decrypt the vault, change it, and replace it by an encrypted one that is complete at any time.

        The new one has the password, the vault ID and the mode of the old one.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        file = Path(arguments["vault"]).resolve()
        vault = self._loader._vault
        encrypted = file.read_bytes()
        text, _, secret = vault.decrypt_and_get_vault_id(encrypted)
        before = text.decode()
        try:
            after, message = rotate(
                before,
                list(arguments["kinds"]),
                arguments["step"],
                arguments["environment"],
                int(arguments["overlap"]),
            )
        except RotationError as error:
            return result | {"failed": True, "msg": str(error)}
        if after != before and not self._task.check_mode:
            label = parse_vaulttext_envelope(encrypted)[3]
            with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".vault.", delete=False) as new:
                new.write(vault.encrypt(after, secret, label))
                new.flush()
                os.fsync(new.fileno())
            shutil.copymode(file, new.name)
            Path(new.name).replace(file)
        return result | {"changed": after != before, "msg": message}
