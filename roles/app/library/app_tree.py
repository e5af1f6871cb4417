#!/usr/bin/python
"""Find what a release is built from, and who builds it: a directory, a wheel, or a git ref of a checkout."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import uuid
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: app_tree
short_description: Resolve the source of a release on the control host
description:
  - A git ref is unpacked into the cache, so that nothing of the work tree gets into the release.
author: Fastmetal
options:
  source: {type: str, required: true, description: "A directory, a wheel or a git ref."}
  checkout: {type: path, required: true, description: "The git checkout that refs are looked up in."}
  cache: {type: path, required: true, description: "Where trees of refs are unpacked."}
"""

RETURN = r"""
tree: {type: str, returned: success, description: "The directory or wheel to build from."}
about:
  description: The commit, with a plus sign where the tree differs from it, and who runs this, where.
  type: dict
  returned: success
"""

EXAMPLES = r"""
- name: Find the source
  app_tree:
    source: v1.4.0
    checkout: /srv/checkout
    cache: /srv/checkout/.artifacts
"""


def git(directory: Path, *arguments: str) -> str:
    """Return what git says, or nothing where it fails."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def unpack(checkout: Path, commit: str, tree: Path) -> None:
    """Write the tree of a commit, whole or not at all."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix="tree-") as directory:
        work = Path(directory)
        archive = work / "tree.tar"
        git(checkout, "archive", f"--output={archive}", commit)
        with tarfile.open(archive) as files:
            files.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            files.extractall(work / "tree")  # noqa: S202 - git's own
        shutil.rmtree(tree, ignore_errors=True)
        (work / "tree").rename(tree)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "checkout": {"type": "path", "required": True},
            "cache": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    source, checkout = module.params["source"], Path(module.params["checkout"])
    path = Path(source).expanduser().absolute()
    commit = ""
    if path.is_dir():
        if commit := git(path, "rev-parse", "--short=12", "HEAD"):
            commit += "+" if git(path, "status", "--porcelain", "--", ".") else ""
    elif not path.is_file():
        commit = git(checkout, "rev-parse", "--verify", "--quiet", "--short=12", f"{source}^{{commit}}")
        if not commit:
            module.fail_json(
                msg=f"app_source '{source}' is no directory, wheel or git ref of {checkout}: correct it."
            )
        path = Path(module.params["cache"]) / f"tree-{commit}"
        try:
            unpack(checkout, commit, path)
        except (OSError, tarfile.TarError) as error:
            module.fail_json(msg=f"The tree of {source} could not be unpacked: {error}.")
    who = os.environ.get("SUDO_USER") or getpass.getuser()
    about = {"commit": commit, "by": who, "from": socket.gethostname(), "run": uuid.uuid4().hex[:12]}
    module.exit_json(changed=False, tree=str(path), about=about)


if __name__ == "__main__":
    main()
