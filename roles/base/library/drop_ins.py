#!/usr/bin/python3
"""Write a set of small root-owned files in one task: a task costs a third of a second, a file nothing."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: drop_ins
short_description: Write a set of small files in one task
description:
  - Writes each file atomically, owned by root, and creates missing parent directories.
  - Every changed file passes its O(validate) command before the first one is written.
  - Returns the changed files as RV(paths), for handlers that care about some of them.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where the file goes., type: path, required: true}
      content: {description: What is in it; empty removes the file., type: str, required: true}
      mode: {description: Its permissions., type: str, default: "0644"}
      validate: {description: "A command that refuses a bad file, with %s for its name.", type: str}
"""

EXAMPLES = r"""
- name: Write the drop-ins
  drop_ins:
    files:
      - path: /etc/sudoers.d/ops
        content: "ops ALL=(ALL:ALL) NOPASSWD: ALL\n"
        mode: "0440"
        validate: visudo --check --file=%s
"""

RETURN = r"""
paths:
  description: The files that were written or removed.
  type: list
  returned: always
"""

ROOT = 0


def is_current(path: Path, content: str, mode: int) -> bool:
    """Tell whether the file is already as wanted."""
    if not path.is_file():
        return not content
    status = path.stat()
    owned = (status.st_uid, status.st_gid) == (ROOT, ROOT) and stat.S_IMODE(status.st_mode) == mode
    return bool(content) and owned and path.read_text() == content


def validate(module: Any, file: dict[str, Any]) -> None:
    """End the task when the file's own checker refuses its content."""
    command = shlex.split(file["validate"])
    # In check mode on a bare host the package that brings the checker is not there yet.
    if module.check_mode and shutil.which(command[0]) is None:
        return
    with tempfile.NamedTemporaryFile("w", dir=module.tmpdir) as candidate:
        candidate.write(file["content"])
        candidate.flush()
        code, out, err = module.run_command([part.replace("%s", candidate.name) for part in command])
    if code:
        module.fail_json(msg=f"{file['path']} would be invalid, nothing was written: {(err or out).strip()}")


def write(module: Any, path: Path, content: str, mode: int) -> None:
    """Put the content in place in one move, or remove the file."""
    if not content:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, candidate = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(handle, "w") as file:
        file.write(content)
    module.atomic_move(candidate, str(path))
    os.chown(path, ROOT, ROOT)
    path.chmod(mode)


def main() -> None:
    """Run the module."""
    options = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
        "mode": {"type": "str", "default": "0644"},
        "validate": {"type": "str"},
    }
    files_option = {"type": "list", "elements": "dict", "required": True, "options": options}
    module = AnsibleModule(argument_spec={"files": files_option}, supports_check_mode=True)
    os.umask(0o022)

    changed = []
    diff = []
    for file in module.params["files"]:
        path, mode = Path(file["path"]), int(file["mode"], 8)
        if is_current(path, file["content"], mode):
            continue
        if file["content"] and file["validate"]:
            validate(module, file)
        before = path.read_text() if path.is_file() else ""
        headers = {"before_header": str(path), "after_header": str(path)}
        diff.append({**headers, "before": before, "after": file["content"]})
        changed.append((path, file["content"], mode))
    if not module.check_mode:
        for path, content, mode in changed:
            write(module, path, content, mode)
    module.exit_json(changed=bool(changed), paths=[str(path) for path, _, _ in changed], diff=diff)


if __name__ == "__main__":
    main()
