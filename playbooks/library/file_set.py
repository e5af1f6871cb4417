#!/usr/bin/python3
"""Write a set of small files of a service in one task: a task costs a third of a second, a file nothing."""

from __future__ import annotations

import grp
import os
import shlex
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: file_set
short_description: Write several small files in one task
description:
  - What a copy task per file would do, in one round trip; content, owner (root), group and mode are enforced.
  - Creates missing parent directories.
  - Every changed file passes its O(files[].validate) command before the first one is written.
  - Returns what changed as RV(paths), for handlers that care about some of the files.
author: Fastmetal
options:
  directories:
    description: Directories whose mode matters, in the order they are made.
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
      path: {type: path, required: true, description: "Where the file goes."}
      content: {type: str, required: true, description: "What is in it; empty removes the file."}
      mode: {type: str, default: "0644", description: "Its octal mode."}
      group: {type: str, default: root, description: "The group it belongs to."}
      validate: {type: str, description: "A command that refuses a bad file, with %s for its name."}
"""

RETURN = r"""
paths: {type: list, returned: always, description: "What was written or removed."}
"""

EXAMPLES = r"""
- name: Write the units
  file_set:
    files:
      - path: /etc/systemd/system/api.socket
        content: "{{ lookup('ansible.builtin.template', 'api.socket.j2') }}"
      - path: /etc/sudoers.d/ops
        content: "ops ALL=(ALL:ALL) NOPASSWD: ALL\n"
        mode: "0440"
        validate: visudo --check --file=%s
"""

ROOT = 0


def group_id(module: AnsibleModule, name: str) -> int:
    """Return a group's id; in check mode its package may still have to be installed."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if not module.check_mode:
            module.fail_json(msg=f"There is no group {name} on this host: install what brings it first.")
        return -1


def is_right(path: Path, mode: int, group: int) -> bool:
    """Tell whether owner, group and mode of what is there are as wanted."""
    status = path.lstat()
    return (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, ROOT, group)


def validate(module: AnsibleModule, file: dict[str, Any]) -> None:
    """End the task when the file's own checker refuses its content."""
    command = shlex.split(file["validate"])
    # In check mode on a bare host the package that brings the checker is not there yet.
    if module.check_mode and shutil.which(command[0]) is None:
        return
    with tempfile.NamedTemporaryFile("w", dir=module.tmpdir, encoding="utf-8") as candidate:
        candidate.write(file["content"])
        candidate.flush()
        code, out, err = module.run_command([part.replace("%s", candidate.name) for part in command])
    if code:
        module.fail_json(msg=f"{file['path']} would be invalid, nothing was written: {(err or out).strip()}")


def write(module: AnsibleModule, path: Path, file: dict[str, Any], group: int) -> None:
    """Put the content in place in one move, or remove the file."""
    if not file["content"]:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp's mode is 0600, so a secret is never readable on the way.
    descriptor, candidate = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
        stream.write(file["content"])
    module.atomic_move(candidate, str(path))
    os.chown(path, ROOT, group)
    path.chmod(int(file["mode"], 8))


def make_directories(module: AnsibleModule) -> list[str]:
    """Make and clean the directories; returns what changed."""
    wanted = {Path(file["path"]) for file in module.params["files"]}
    changed: list[str] = []
    for item in module.params["directories"]:
        path, mode = Path(item["path"]), int(item["mode"], 8)
        if not path.is_dir() or not is_right(path, mode, ROOT):
            changed.append(str(path))
            if not module.check_mode:
                path.mkdir(parents=True, exist_ok=True)
                os.chown(path, ROOT, ROOT)
                path.chmod(mode)
        if item["purge"] and path.is_dir():
            for stale in sorted(set(path.iterdir()) - wanted):
                changed.append(str(stale))
                if not module.check_mode:
                    stale.unlink()
    return changed


def main() -> None:
    """Run the module."""
    path = {"type": "path", "required": True}
    directory = {
        "path": path,
        "mode": {"type": "str", "required": True},
        "purge": {"type": "bool", "default": False},
    }
    file_options = {
        "path": path,
        "content": {"type": "str", "required": True},
        "mode": {"type": "str", "default": "0644"},
        "group": {"type": "str", "default": "root"},
        "validate": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "dict", "default": [], "options": directory},
            "files": {"type": "list", "elements": "dict", "required": True, "options": file_options},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    due = []
    diff = []
    try:
        for file in module.params["files"]:
            target, group = Path(file["path"]), group_id(module, file["group"])
            before = target.read_text(encoding="utf-8") if target.is_file() else ""
            same = before == file["content"]
            if same and (not target.exists() or is_right(target, int(file["mode"], 8), group)):
                continue
            if file["validate"] and file["content"]:
                validate(module, file)
            header = {"before_header": str(target), "after_header": str(target)}
            diff.append({**header, "before": before, "after": file["content"]})
            due.append((target, file, group))
        changed = make_directories(module)
        for target, file, group in due if not module.check_mode else []:
            write(module, target, file, group)
    except OSError as error:
        module.fail_json(msg=f"Files could not be written: {error}.")
    changed += [str(target) for target, _, _ in due]
    module.exit_json(changed=bool(changed), paths=changed, diff=diff)


if __name__ == "__main__":
    main()
