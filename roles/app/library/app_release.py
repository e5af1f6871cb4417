#!/usr/bin/python
"""Install a release from its archive, complete or not at all."""

from __future__ import annotations

import compileall
import concurrent.futures
import fcntl
import filecmp
import functools
import hashlib
import importlib.util
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


def compile_sources(directory: Path) -> None:
    """Compile what no earlier release has: most of a release is its dependencies, and seldom new."""
    releases = (marker.parent for marker in directory.parent.glob("*/release.json"))
    newest = sorted(releases, key=lambda release: release.stat().st_mtime)[-1:]
    fresh = []
    for source in directory.glob("venv/lib/python*/site-packages/**/*.py"):
        code = Path(importlib.util.cache_from_source(str(source)))
        for release in newest:
            twin, compiled = (release / path.relative_to(directory) for path in (source, code))
            if compiled.exists() and filecmp.cmp(source, twin, shallow=False):
                code.parent.mkdir(exist_ok=True)
                os.link(compiled, code)
                break
        else:
            fresh.append(source)
    # Byte code that trusts its source needs no check at import; without the path it is the same everywhere.
    compile_one = functools.partial(
        compileall.compile_file,
        quiet=2,
        stripdir=str(directory),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    with concurrent.futures.ProcessPoolExecutor() as pool:
        list(pool.map(compile_one, fresh, chunksize=20))


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
    compile_sources(directory)
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
