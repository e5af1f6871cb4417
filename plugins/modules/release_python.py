#!/usr/bin/python
"""Unpack a standalone CPython on a host, completely or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release_python
short_description: Install a standalone CPython beside the host's own
description:
  - Needs no network and no package on the host. The interpreter must run there before it is accepted.
  - The action of this name finds the archive on the control node and copies it to a host that lacks it.
    Its options are C(python), C(archive), C(checksum), C(architecture), C(cache) and C(directory) (of all
    interpreters). It returns C(version), C(id) and C(interpreter).
  - Without C(directory) the action only finds the archive, and returns what is wrong with it as C(fault).
author: Fastmetal
options:
  archive: {type: path, required: true, description: "The archive on the host, which is removed."}
  checksum: {type: str, required: true, description: "Its SHA-256."}
  version: {type: str, required: true, description: "The version that the interpreter has to report."}
  directory: {type: path, required: true, description: "The directory of this interpreter."}
"""

EXAMPLES = r"""
- name: Install the Python of the release
  fastmetal.metal.release_python:
    python: "3.14"
    archive: /srv/archives/cpython-3.14.0+20251014-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz
    architecture: x86_64
    cache: /srv/checkout/.artifacts
    directory: /srv/api/pythons
"""

RETURN = r""" # """

# What applications need and a broken or foreign build lacks.
PROBE = "import ctypes, sqlite3, ssl, venv, zlib, platform; print(platform.python_version())"


class InstallError(Exception):
    """A failure, as one sentence for the operator."""


def install(archive: Path, version: str, directory: Path) -> None:
    """Unpack the archive beside the directory, try the interpreter, and rename the result."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tree:
        # Older Python releases have no filters.
        tree.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tree.extractall(partial)
    home = partial / "python"
    interpreter = str(home / "bin/python3")
    done = run(interpreter, "-I", "-c", PROBE)
    if done.returncode or done.stdout.strip() != version:
        reason = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise InstallError(f"Python {version} does not run on this host: {reason}")
    # The service cannot write here, and would compile at each start.
    unneeded = r"/(test|tests|idlelib|lib2to3|site-packages)/"
    options = ["-qq", "--invalidation-mode=unchecked-hash", "-s", str(home), "-p", str(directory), "-j", "0"]
    run(interpreter, "-I", "-m", "compileall", *options, "-x", unneeded, str(home / "lib"))
    os.sync()
    # The archive's own time would let it be removed before the release that needs it is installed.
    os.utime(home)
    home.rename(directory)
    partial.rmdir()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return its result."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "path", "required": True},
            "checksum": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
        }
    )
    archive, directory = Path(module.params["archive"]), Path(module.params["directory"])
    os.umask(0o022)
    try:
        if hashlib.sha256(archive.read_bytes()).hexdigest() != module.params["checksum"]:
            raise InstallError(f"{archive} is not the archive that was copied: run again")
        install(archive, module.params["version"], directory)
        archive.unlink()
    except (InstallError, OSError, tarfile.TarError) as error:
        shutil.rmtree(directory.with_name(f".{directory.name}.partial"), ignore_errors=True)
        module.fail_json(msg=f"{error}.")
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
