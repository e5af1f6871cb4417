#!/usr/bin/python
"""Install a release from its archives, complete or not at all."""

from __future__ import annotations

import compileall
import concurrent.futures
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import py_compile
import shutil
import sys
import tarfile
import venv
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: app_release
short_description: Unpack a release and make its virtual environment
description:
  - Needs no network, no pip and no package on the host. The file release.json comes last, so a directory
    without it is what a killed run left, and is made anew. So is one of another Python than the host has.
  - The action of this name brings the archives, and that of the dependencies only where no release has them.
author: Fastmetal
options:
  directory: {type: path, required: true, description: "The release's directory."}
  dependencies: {type: str, required: true, description: "What the release's dependencies are known by."}
  archives:
    description: Archives on the host; removed when they are installed.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {type: path, required: true, description: "The archive."}
      checksum: {type: str, required: true, description: "Its SHA-256."}
"""

RETURN = r""" # """

EXAMPLES = r"""
- name: Install the release
  app_release:
    directory: /srv/api/releases/1.0-0123456789ab
    dependencies: 89abcdef0123-py3.13.5-x86_64
    archives:
      - path: /srv/api/.app.tar.gz
        checksum: 0f343b0931126a20f133d67c2b018a3b9d1a52fd1eb4a1a2d0d1a3c8e6a1b2c3
"""


def lock_releases(releases: Path) -> None:
    """Wait for an interrupted run that is still at work on the host; the lock ends with this process."""
    releases.mkdir(parents=True, exist_ok=True)
    fcntl.flock(os.open(releases, os.O_RDONLY), fcntl.LOCK_EX)


def is_installed(directory: Path) -> bool:
    """Tell whether a release is whole and starts with this Python, which an upgrade of the host changes."""
    marker = directory / "release.json"
    return marker.exists() and json.loads(marker.read_text())["python"] == "{}.{}".format(*sys.version_info)


def share_dependencies(directory: Path, dependencies: str) -> None:
    """Link the files of a release that has the same: they are most of a release, and seldom new."""
    for marker in directory.parent.glob("*/release.json"):
        if json.loads(marker.read_text()).get("dependencies") == dependencies:
            packages = next(marker.parent.glob("venv/lib/python*"))
            place = directory / packages.relative_to(marker.parent)
            shutil.copytree(packages, place, copy_function=os.link)
            return
    raise OSError(f"no release has its dependencies {dependencies} any more: run again")


def compile_sources(directory: Path) -> None:
    """Compile what was not linked with its byte code."""
    sources = [path for top in ("code", "venv/lib") for path in (directory / top).rglob("*.py")]
    fresh = [path for path in sources if not Path(importlib.util.cache_from_source(str(path))).exists()]
    # Byte code that trusts its source needs no check at import; without the path it is the same everywhere.
    compile_one = functools.partial(
        compileall.compile_file,
        quiet=2,
        stripdir=str(directory),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    with concurrent.futures.ProcessPoolExecutor() as pool:
        list(pool.map(compile_one, fresh, chunksize=20))


def install(archives: list[Path], directory: Path, dependencies: str) -> None:
    # What it did to the database stays known when it is made anew.
    plan = directory / "migration.sql"
    migrated = plan.read_text() if plan.exists() else ""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if migrated:
        plan.touch(0o600)
        plan.write_text(migrated)
    for archive in archives:
        with tarfile.open(archive) as tree:
            # Python releases before the filters have no attribute to set.
            tree.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            tree.extractall(directory)  # noqa: S202 - the checksum says it is ours
    marker = directory / "release.json"
    partial = marker.rename(directory / "release.json.partial")
    if not (directory / "venv").exists():
        share_dependencies(directory, dependencies)
    venv.create(directory / "venv", symlinks=True)
    compile_sources(directory)
    os.sync()
    partial.rename(marker)


def main() -> None:
    archive = {"path": {"type": "path", "required": True}, "checksum": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "dependencies": {"type": "str", "required": True},
            "archives": {"type": "list", "elements": "dict", "required": True, "options": archive},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["directory"])
    given: list[dict[str, Any]] = module.params["archives"]
    os.umask(0o022)
    changed = not is_installed(directory)
    try:
        if changed and not module.check_mode:
            lock_releases(directory.parent)
        if not is_installed(directory) and not module.check_mode:
            for one in given:
                if hashlib.sha256(Path(one["path"]).read_bytes()).hexdigest() != one["checksum"]:
                    module.fail_json(msg=f"{one['path']} is not the archive that was built: run again.")
            archives = [Path(one["path"]) for one in given]
            install(archives, directory, module.params["dependencies"])
            for path in archives:
                path.unlink()
    except (OSError, tarfile.TarError) as error:
        module.fail_json(msg=f"The release could not be installed in {directory}: {error}.")
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
