#!/usr/bin/python3
"""Write several small files in one task: a task costs a third of a second, one more file nothing."""

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
from ansible_collections.fastmetal.metal.plugins.module_utils.files import write_atomically
from ansible_collections.fastmetal.metal.plugins.module_utils.marks import MARKS, claim, is_marked

DOCUMENTATION = r"""
module: file_set
short_description: Write several small files in one task
description:
  - Does in one round trip what one copy task per file does. Enforces content, owner (root), group and mode.
  - Creates missing parent directories.
  - Runs the O(files[].validate) command of every changed file before it writes the first one.
  - Returns the changed files as RV(paths), for handlers that depend on some of them.
  - In a role, marks the role's function in /etc/fastmetal/functions before it writes.
  - The first time, it copies the files that it replaces or removes to /etc/fastmetal/replaced.
author: Fastmetal
options:
  directories:
    description: Directories with a certain mode, in the order of their creation.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {type: path, required: true, description: "The directory."}
      mode: {type: str, required: true, description: "Its octal mode."}
      purge: {type: bool, default: false, description: "Remove files in it that are not listed."}
      present: {type: bool, default: true, description: "False removes the directory with its files."}
  files:
    description: The files. Give each one of C(content), C(template) and C(file).
    type: list
    elements: dict
    required: true
    suboptions:
      path: {type: path, required: true, description: "The path on the host."}
      content: {type: str, description: "The content; empty removes the file."}
      template: {type: str, description: "A template, rendered on the control node."}
      file: {type: str, description: "A file of the control node with the content."}
      variables: {type: dict, description: "Further variables of the template."}
      present: {type: bool, default: true, description: "False removes the file."}
      units: {type: list, elements: str, description: "Ignored; for the filter C(file_units)."}
      mode: {type: str, default: "0644", description: "Its octal mode."}
      group: {type: str, default: root, description: "Its group."}
      validate:
        description:
          - A command that fails if the content is invalid; C(%s) is the path of a copy with the file's name.
          - Copies of files that have this option and share a directory share one, too.
        type: str
  purge:
    description: Remove files that match one of these glob patterns and are not in O(files).
    type: list
    elements: path
    default: []
  keep:
    description: Files that other tasks of the role replace, to be copied as well.
    type: list
    elements: path
    default: []
  owner:
    description: The role, environment and service of the mark; set by the action.
    type: dict
    default: {}
"""

RETURN = r"""
paths: {type: list, returned: always, description: "The files and directories that were written or removed."}
"""

EXAMPLES = r"""
- name: Write the units
  fastmetal.metal.file_set:
    files:
      - path: /etc/systemd/system/api.socket
        template: api.socket.j2
      - path: /etc/sudoers.d/ops
        content: "ops ALL=(ALL:ALL) NOPASSWD: ALL\n"
        mode: "0440"
        validate: visudo --check --file=%s
"""

ROOT = ROOT_GROUP = 0
# The action of the same name turns these into content.
ACTION_OPTIONS = {
    "template": {"type": "str"},
    "file": {"type": "str"},
    "variables": {"type": "dict"},
    "present": {"type": "bool", "default": True},
    "units": {"type": "list", "elements": "str"},
}


def group_id(module: AnsibleModule, name: str) -> int:
    """Return a group's id, or -1 in check mode if the group does not exist yet."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if not module.check_mode:
            module.fail_json(msg=f"The group {name} does not exist on this host: install its package first.")
        return -1


def has_permissions(path: Path, mode: int, group: int) -> bool:
    """Return whether a path has the mode and the group and belongs to root."""
    status = path.lstat()
    return (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, ROOT, group)


def validate(module: AnsibleModule, files: list[dict[str, Any]]) -> None:
    """End the task if the validate command of one of the files fails."""
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as scratch:
        # systemd-analyze wants a unit under its own name, and a timer's service beside it.
        folders: dict[Path, Path] = {}
        copies = {}
        for file in module.params["files"]:
            if file["validate"] and file["content"]:
                target = Path(file["path"])
                folder = folders.setdefault(target.parent, Path(scratch, str(len(folders))))
                folder.mkdir(exist_ok=True)
                copies[file["path"]] = folder / target.name
                (folder / target.name).write_text(file["content"], encoding="utf-8", newline="")
        for file in files:
            if file["path"] not in copies:
                continue
            command = shlex.split(file["validate"])
            # In check mode on a bare host the command's package is not installed yet.
            if module.check_mode and shutil.which(command[0]) is None:
                continue
            words = [word.replace("%s", str(copies[file["path"]])) for word in command]
            code, out, err = module.run_command(words)
            if code:
                reason = (err or out).strip()
                module.fail_json(msg=f"{file['path']} would be invalid, nothing was written: {reason}")


def apply(file: dict[str, Any], group: int) -> None:
    """Write a file, or remove it if its content is empty."""
    path = Path(file["path"])
    if not file["content"]:
        path.unlink(missing_ok=True)  # Its directory may be gone.
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file["content"], int(file["mode"], 8), owner=ROOT, group=group)


def make_directories(directories: list[dict[str, Any]], *, check_mode: bool) -> list[str]:
    """Create the directories, or remove them, and correct their permissions; return those that changed."""
    changed = []
    for item in directories:
        path, mode = Path(item["path"]), int(item["mode"], 8)
        if not item["present"]:
            if path.is_dir():
                changed.append(str(path))
                if not check_mode:
                    shutil.rmtree(path)
        elif not path.is_dir() or not has_permissions(path, mode, ROOT_GROUP):
            changed.append(str(path))
            if not check_mode:
                path.mkdir(parents=True, exist_ok=True)
                os.chown(path, ROOT, ROOT_GROUP)
                path.chmod(mode)
    return changed


def find_stale(module: AnsibleModule) -> list[Path]:
    """Return the files to purge."""
    listed = {Path(file["path"]) for file in module.params["files"]}
    found: set[Path] = set()
    for item in module.params["directories"]:
        path = Path(item["path"])
        if item["purge"] and path.is_dir():
            found.update(path.iterdir())
    for pattern in module.params["purge"]:
        # A drop-in directory, as of `systemctl edit`, belongs to the operator.
        found.update(
            path for path in Path("/").glob(pattern.lstrip("/")) if path.is_symlink() or path.is_file()
        )
    return sorted(found - listed)


def run(module: AnsibleModule) -> tuple[list[str], list[dict[str, str]]]:
    """Bring the host to the desired state; return the changed paths and the differences."""
    due = []
    differences = []
    for file in module.params["files"]:
        target, group = Path(file["path"]), group_id(module, file["group"])
        # A file of the operator may have any encoding.
        before = target.read_text(encoding="utf-8", errors="replace") if target.is_file() else ""
        same = before == file["content"]
        if same and (not target.exists() or has_permissions(target, int(file["mode"], 8), group)):
            continue
        header = {"before_header": str(target), "after_header": str(target)}
        differences.append({**header, "before": before, "after": file["content"]})
        due.append((file, group))
    validate(module, [file for file, _ in due])
    check_mode = bool(module.check_mode)
    stale = find_stale(module)
    mark = dict(module.params["owner"])
    role = mark.pop("role", "")
    unmarked = bool(role) and not is_marked(role, mark)
    if unmarked and not check_mode:
        claim(role, mark, [*map(str, stale), *(file["path"] for file, _ in due), *module.params["keep"]])
    if not check_mode:
        for path in stale:
            path.unlink()
    changed = make_directories(module.params["directories"], check_mode=check_mode)
    if not check_mode:
        for file, group in due:
            apply(file, group)
    marked = [f"/{MARKS}/{role}.json"] if unmarked else []
    return [*marked, *changed, *map(str, stale), *(file["path"] for file, _ in due)], differences


def main() -> None:
    """Run the module."""
    path = {"type": "path", "required": True}
    directory = {
        "path": path,
        "mode": {"type": "str", "required": True},
        "purge": {"type": "bool", "default": False},
        "present": {"type": "bool", "default": True},
    }
    file_options = {
        "path": path,
        "content": {"type": "str"},
        **ACTION_OPTIONS,
        "mode": {"type": "str", "default": "0644"},
        "group": {"type": "str", "default": "root"},
        "validate": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "dict", "default": [], "options": directory},
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": file_options,
                "required_one_of": [["content", "template", "file"]],
            },
            "purge": {"type": "list", "elements": "path", "default": []},
            "keep": {"type": "list", "elements": "path", "default": []},
            "owner": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    try:
        changed, differences = run(module)
    except OSError as error:
        module.fail_json(msg=f"Files could not be written: {error}.")
    module.exit_json(changed=bool(changed), paths=changed, diff=differences)


if __name__ == "__main__":
    main()
