#!/usr/bin/python
"""Install a release from its archive, complete or not at all."""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import os
import py_compile
import shutil
import tarfile
import venv
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: app_release
short_description: Unpack a release and make its virtual environment
description:
  - Needs no network, no pip and no package on the host. The file release.json comes last, so a directory
    without it is what a killed run left, and is made anew.
author: Fastmetal
options:
  archive: {type: path, required: true, description: "The archive on the host; removed when it is installed."}
  checksum: {type: str, required: true, description: "Its SHA-256."}
  directory: {type: path, required: true, description: "The release's directory."}
"""

RETURN = r""" # """

EXAMPLES = r"""
- name: Install the release
  app_release:
    archive: /var/tmp/api-1.0-0123456789ab.tar.gz
    checksum: 0f343b0931126a20f133d67c2b018a3b9d1a52fd1eb4a1a2d0d1a3c8e6a1b2c3
    directory: /srv/api/releases/1.0-0123456789ab
"""


def lock_releases(releases: Path) -> None:
    """Wait for an interrupted run that is still at work on the host; the lock ends with this process."""
    releases.mkdir(parents=True, exist_ok=True)
    fcntl.flock(os.open(releases, os.O_RDONLY), fcntl.LOCK_EX)


def install(archive: Path, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with tarfile.open(archive) as tree:
        # Python releases before the filters have no attribute to set.
        tree.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tree.extractall(directory)  # noqa: S202 - the checksum says it is ours
    marker = directory / "release.json"
    partial = marker.rename(directory / "release.json.partial")
    venv.create(directory / "venv", symlinks=True)
    # Byte code that trusts its source needs no check at import and is the same on every host.
    compileall.compile_dir(
        directory / "venv",
        quiet=2,
        workers=0,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    os.sync()
    partial.rename(marker)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "path", "required": True},
            "checksum": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    archive, directory = Path(module.params["archive"]), Path(module.params["directory"])
    os.umask(0o022)
    marker = directory / "release.json"
    changed = not marker.exists()
    try:
        if changed and not module.check_mode:
            lock_releases(directory.parent)
        if not marker.exists() and not module.check_mode:
            if hashlib.sha256(archive.read_bytes()).hexdigest() != module.params["checksum"]:
                module.fail_json(msg=f"{archive} is not the archive that was built: run again.")
            install(archive, directory)
            archive.unlink()
    except (OSError, tarfile.TarError) as error:
        module.fail_json(msg=f"The release could not be installed in {directory}: {error}.")
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
