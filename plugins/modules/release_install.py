#!/usr/bin/python
"""Install a release from its archives, completely or not at all."""

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
module: release_install
short_description: Unpack a release and create its virtual environment
description:
  - Needs no network, no pip and no package on the host.
  - The file release.json is written last. A directory without it was left by a killed run and is replaced.
    So is a release of another Python than the host's.
  - The action of this name copies the archives from the control node. It copies the dependencies' archive
    only if no release on the host has the same dependencies.
author: Fastmetal
options:
  directory: {type: path, required: true, description: "The release's directory."}
  build:
    description: The result of M(fastmetal.metal.release_artifact). The action adds the archives on the host.
    type: dict
    required: true
"""

RETURN = r""" # """

EXAMPLES = r"""
- name: Install the release
  fastmetal.metal.release_install:
    directory: /srv/api/releases/1.0-0123456789ab
    build: "{{ __app_build }}"
"""


def lock_releases(releases: Path) -> None:
    """Wait until an interrupted run has ended on the host; the lock ends with this process."""
    releases.mkdir(parents=True, exist_ok=True)
    fcntl.flock(os.open(releases, os.O_RDONLY), fcntl.LOCK_EX)


def is_installed(directory: Path) -> bool:
    """Return whether a release is complete and of this Python, which an upgrade of the host changes."""
    marker = directory / "release.json"
    return marker.exists() and json.loads(marker.read_text())["python"] == "{}.{}".format(*sys.version_info)


def share_dependencies(directory: Path, dependencies: str) -> None:
    """Link the files of a release with the same dependencies: they are most of a release and rarely new."""
    for marker in directory.parent.glob("*/release.json"):
        if json.loads(marker.read_text()).get("dependencies") == dependencies:
            packages = next(marker.parent.glob("venv/lib/python*"))
            target = directory / packages.relative_to(marker.parent)
            shutil.copytree(packages, target, copy_function=os.link)
            return
    raise OSError(f"no release has its dependencies {dependencies} any more: run again")


def compile_sources(directory: Path) -> None:
    """Compile the sources that were not linked with their byte code."""
    sources = [path for top in ("code", "venv/lib") for path in (directory / top).rglob("*.py")]
    fresh = [path for path in sources if not Path(importlib.util.cache_from_source(str(path))).exists()]
    # Unchecked byte code needs no look at its source at import; without paths it is the same on every host.
    compile_one = functools.partial(
        compileall.compile_file,
        quiet=2,
        stripdir=str(directory),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    with concurrent.futures.ProcessPoolExecutor() as pool:
        list(pool.map(compile_one, fresh, chunksize=20))


def install(archives: list[Path], directory: Path, dependencies: str) -> None:
    """Install a release from its archives; release.json comes last."""
    # The record of its migration survives a new installation.
    plan = directory / "migration.sql"
    migrated = plan.read_text() if plan.exists() else ""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if migrated:
        plan.touch(0o600)
        plan.write_text(migrated)
    for archive in archives:
        with tarfile.open(archive) as tree:
            # Older Python releases have no filters.
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
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "build": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["directory"])
    build: dict[str, Any] = module.params["build"]
    os.umask(0o022)
    changed = not is_installed(directory)
    try:
        if changed and not module.check_mode:
            lock_releases(directory.parent)
        if not is_installed(directory) and not module.check_mode:
            for archive in build["archives"]:
                if hashlib.sha256(Path(archive["path"]).read_bytes()).hexdigest() != archive["checksum"]:
                    module.fail_json(msg=f"{archive['path']} is not the archive that was built: run again.")
            archives = [Path(archive["path"]) for archive in build["archives"]]
            install(archives, directory, build["dependencies_id"])
            for path in archives:
                path.unlink()
    except (OSError, tarfile.TarError) as error:
        module.fail_json(msg=f"The release could not be installed in {directory}: {error}.")
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
