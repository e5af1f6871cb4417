#!/usr/bin/python
"""Write a set of root-owned files and directories in one round trip."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: file_set
short_description: Write several small root-owned files at once
description:
  - What a copy task per file would do, in one round trip; content, owner and mode are enforced.
author: Fastmetal
options:
  directories:
    description: Directories in the order they are made.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {type: path, required: true, description: "The directory."}
      mode: {type: str, required: true, description: "Its octal mode."}
      purge: {type: bool, default: false, description: "Remove files in it that are not listed."}
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {type: path, required: true, description: "The file."}
      content: {type: str, required: true, description: "Its whole content."}
      mode: {type: str, required: true, description: "Its octal mode."}
"""

RETURN = r"""
paths: {type: list, returned: success, description: "What was written or removed."}
"""

EXAMPLES = r"""
- name: Write the units
  file_set:
    files:
      - path: /etc/systemd/system/api.socket
        content: "{{ lookup('ansible.builtin.template', 'api.socket.j2') }}"
        mode: "0644"
"""


def is_right(path: Path, mode: int) -> bool:
    status = path.lstat()
    return (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (mode, 0, 0)


def write(module: AnsibleModule, path: Path, content: str, mode: int) -> None:
    descriptor, partial = tempfile.mkstemp(dir=module.tmpdir)
    # mkstemp's mode is 0600, so a secret is never readable on the way.
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
        stream.write(content)
    module.atomic_move(partial, str(path))
    os.chown(path, 0, 0)
    path.chmod(mode)


def main() -> None:
    text = {"type": "str", "required": True}
    location = {"type": "path", "required": True}
    module = AnsibleModule(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": location, "mode": text, "purge": {"type": "bool", "default": False}},
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"path": location, "mode": text, "content": text},
            },
        },
        supports_check_mode=True,
    )
    changed: list[str] = []
    diff: list[dict[str, Any]] = []
    wanted = {Path(item["path"]) for item in module.params["files"]}
    try:
        for item in module.params["directories"]:
            path, mode = Path(item["path"]), int(item["mode"], 8)
            if not path.is_dir() or not is_right(path, mode):
                changed.append(str(path))
                if not module.check_mode:
                    path.mkdir(parents=True, exist_ok=True)
                    os.chown(path, 0, 0)
                    path.chmod(mode)
            if item["purge"] and path.is_dir():
                for stale in sorted(set(path.iterdir()) - wanted):
                    changed.append(str(stale))
                    if not module.check_mode:
                        stale.unlink()
        for item in module.params["files"]:
            path, mode = Path(item["path"]), int(item["mode"], 8)
            before = path.read_text(encoding="utf-8") if path.is_file() else None
            if before == item["content"] and is_right(path, mode):
                continue
            changed.append(str(path))
            diff.append({"header": str(path), "before": before or "", "after": item["content"]})
            if not module.check_mode:
                write(module, path, item["content"], mode)
    except OSError as error:
        module.fail_json(msg=f"Files could not be written: {error}.")
    module.exit_json(changed=bool(changed), paths=changed, diff=diff)


if __name__ == "__main__":
    main()
