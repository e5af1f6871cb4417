#!/usr/bin/python
"""Install a release from its archives, completely or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
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
  interpreter:
    type: path
    default: ""
    description: The Python of the release, such as its own; empty means the one that runs the module.
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


def is_installed(directory: Path, python: str) -> bool:
    """Return whether a release is complete and for this Python, which an upgrade of the host changes."""
    marker = directory / "release.json"
    return marker.exists() and json.loads(marker.read_text())["python"] == python


def share_dependencies(directory: Path, dependencies: str) -> None:
    """Link the files of a release with the same dependencies: they are most of a release and rarely new."""
    for marker in directory.parent.glob("*/release.json"):
        if json.loads(marker.read_text()).get("dependencies") == dependencies:
            packages = next(marker.parent.glob("venv/lib/python*"))
            target = directory / packages.relative_to(marker.parent)
            # A release has its own app.pth, and its own commands.
            own = shutil.ignore_patterns("app.pth")
            shutil.copytree(packages, target, copy_function=os.link, dirs_exist_ok=True, ignore=own)
            return
    raise OSError(f"no release has its dependencies {dependencies} any more: run again")


def compile_sources(directory: Path, interpreter: str, python: str) -> None:
    """Compile the sources that were not linked with their byte code."""
    sources = [path for top in ("code", "local", "venv/lib") for path in (directory / top).rglob("*.py")]
    tag = f"cpython-{python.replace('.', '')}.pyc"
    fresh = [path for path in sources if not (path.parent / f"__pycache__/{path.stem}.{tag}").exists()]
    # Unchecked byte code needs no look at its source at import; without paths it is the same on every host.
    options = ["-qq", "--invalidation-mode=unchecked-hash", "-s", str(directory), "-j", "0", "-i", "-"]
    # A template or a test may be no Python of this version, and does not matter until it is imported.
    subprocess.run(  # noqa: S603 - the arguments are ours
        [interpreter, "-m", "compileall", *options],
        input="\n".join(map(str, fresh)),
        text=True,
        check=False,
        capture_output=True,
    )


def install(archives: list[Path], directory: Path, build: dict[str, Any], interpreter: str) -> None:
    """Install a release from its archives; release.json comes last."""
    # The record of its migration survives a new installation.
    records = {
        file: file.read_text()
        for file in (directory / "migration.sql", directory / "restore-point")
        if file.exists()
    }
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for file, text in records.items():
        file.touch(0o600)
        file.write_text(text)
    for archive in archives:
        with tarfile.open(archive) as tree:
            # Older Python releases have no filters.
            tree.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            tree.extractall(directory)  # noqa: S202 - the checksum says it is ours
    marker = directory / "release.json"
    partial = marker.rename(directory / "release.json.partial")
    if len(archives) == 1:
        share_dependencies(directory, build["dependencies_id"])
    create = [interpreter, "-m", "venv", "--without-pip", "--symlinks", str(directory / "venv")]
    done = subprocess.run(create, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise OSError((done.stderr or done.stdout).strip())
    compile_sources(directory, interpreter, build["python"])
    os.sync()
    partial.rename(marker)


def announce(directory: Path) -> None:
    """Point the link `next` beside the releases to one, so that Nginx finds its files before it is live."""
    fresh = directory.parent.parent / ".next.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(directory)
    fresh.replace(directory.parent.parent / "next")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "build": {"type": "dict", "required": True},
            "interpreter": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["directory"])
    build: dict[str, Any] = module.params["build"]
    os.umask(0o022)
    python, interpreter = build["python"], module.params["interpreter"] or sys.executable
    changed = not is_installed(directory, python)
    try:
        if changed and not module.check_mode:
            lock_releases(directory.parent)
        if not is_installed(directory, python) and not module.check_mode:
            for archive in build["archives"]:
                if hashlib.sha256(Path(archive["path"]).read_bytes()).hexdigest() != archive["checksum"]:
                    module.fail_json(msg=f"{archive['path']} is not the archive that was built: run again.")
            archives = [Path(archive["path"]) for archive in build["archives"]]
            install(archives, directory, build, interpreter)
            for path in archives:
                path.unlink()
        if not module.check_mode:
            announce(directory)
    except (OSError, tarfile.TarError) as error:
        module.fail_json(msg=f"The release could not be installed in {directory}: {error}.")
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
