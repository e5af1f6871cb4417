"""Write files on a host. Standard library only: programs outside Ansible get a copy of this file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(
    path: Path, text: str, mode: int = 0o644, *, owner: int = -1, group: int = -1, sync: bool = True
) -> None:
    """Replace a file in one step: a reader sees the old or the new content, never a part of it.

    owner and group are numeric ids; -1 keeps those of the process. Without sync the file survives a crash
    of the program, but a power cut may empty it.
    """
    # Readable by its owner only, until its final mode is set.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    candidate = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            # The sandboxes of our services forbid chown, also one that changes nothing.
            if (owner, group) != (-1, -1):
                os.fchown(descriptor, owner, group)
            os.fchmod(descriptor, mode)
            stream.write(text)
            stream.flush()
            if sync:
                os.fsync(descriptor)
        candidate.replace(path)
    except OSError:
        candidate.unlink(missing_ok=True)
        raise
