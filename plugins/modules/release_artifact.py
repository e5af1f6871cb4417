#!/usr/bin/python
"""Build a release of an ASGI app for one target Python: reproducible archives, cached by content."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from ansible.module_utils.basic import AnsibleModule

try:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError as error:
    MISSING = str(error)
else:
    MISSING = ""

DOCUMENTATION = r"""
module: release_artifact
short_description: Build the archives of a release, once for each content
description:
  - Runs on the control node. Builds the app's wheel, installs its hash-locked dependencies for the target's
    Python with uv, and packs both into archives that a host only has to unpack.
  - The dependencies have an archive of their own, as most releases have those of the release before.
  - The release's id depends only on the app's files, the lock and the version.
  - uv's own settings, such as UV_DEFAULT_INDEX and UV_FIND_LINKS, apply to the download.
author: Fastmetal
options:
  source: {type: path, required: true, description: "The source tree or a wheel."}
  files: {type: list, elements: str, required: true, description: "Files and directories that are built."}
  requirements: {type: path, required: true, description: "The lock with hashes and environment markers."}
  version: {type: str, default: "", description: "The version; empty takes it from pyproject.toml."}
  python_version: {type: str, required: true, description: "The target's full Python version."}
  architecture: {type: str, required: true, description: "The target's machine architecture."}
  cache: {type: path, required: true, description: "The directory that keeps archives and wheels."}
"""

RETURN = r"""
release: {type: str, returned: success, description: "The release id."}
app: {type: str, returned: success, description: "Path of the archive with the app's own code."}
dependencies: {type: str, returned: success, description: "Path of the archive with its dependencies."}
dependencies_id: {type: str, returned: success, description: "The id of the dependencies."}
python: {type: str, returned: success, description: "The target's Python, such as 3.13."}
"""

EXAMPLES = r"""
- name: Build the release
  fastmetal.metal.release_artifact:
    source: /srv/checkout
    files: [pyproject.toml, app]
    requirements: /srv/checkout/requirements-app.txt
    python_version: 3.13.5
    architecture: x86_64
    cache: /srv/checkout/.artifacts
"""

FORMAT = "3"  # part of every id: raise it when the archives' layout changes
EPOCH = 315532800  # 1980, the earliest time of a zip archive
KEEP = 10
# The oldest glibc among the supported Debian releases is 2.36 (Debian 12).
PLATFORM = "{architecture}-manylinux_2_36"
# Scripts name the control node's interpreter, so hosts run everything with "python -m".
UNUSED_FOLDERS = {"bin", "include", "share"}
# They differ from one installation to the next.
UNUSED_FILES = {".lock", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"}
IGNORED = re.compile(r"(^|/)(__pycache__|\.[^/]*_cache|[^/]*\.egg-info|Containerfile)(/|$)|\.py[co]$")


class BuildError(Exception):
    """A failure, as one sentence for the operator."""


class Build:
    """A release for one target."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.source = Path(params["source"])
        self.files: list[str] = params["files"]
        self.lock = Path(params["requirements"])
        self.python: str = params["python_version"]
        self.short = ".".join(self.python.split(".")[:2])
        self.arch: str = params["architecture"]
        self.cache = Path(params["cache"])
        if not self.source.exists():
            raise BuildError(f"The app's source {self.source} does not exist: set app_source.")
        if not self.lock.is_file():
            raise BuildError(f"The dependency lock {self.lock} does not exist: set app_requirements.")
        self.is_wheel = self.source.is_file()
        self.sources = [self.source] if self.is_wheel else self.collect()
        self.version: str = params["version"] or self.detect_version()
        lock = self.lock.read_bytes()
        digest = hashlib.sha256(f"{FORMAT}\n{self.version}\n".encode() + lock)
        for path in self.sources:
            content = path.read_bytes()
            name = path.name if self.is_wheel else path.relative_to(self.source).as_posix()
            digest.update(f"\n{name} {len(content)}\n".encode() + content)
        self.release = re.sub(r"[^A-Za-z0-9._]", ".", self.version) + "-" + digest.hexdigest()[:12]
        target = f"py{self.python}-{self.arch}"
        self.dependencies_id = f"{hashlib.sha256(FORMAT.encode() + lock).hexdigest()[:12]}-{target}"
        self.app = self.cache / f"app-{self.release}-{target}.tar.gz"
        self.dependencies = self.cache / f"dependencies-{self.dependencies_id}.tar.gz"
        self.packages = self.cache / f"packages-{self.dependencies_id}.json"

    @property
    def is_built(self) -> bool:
        """Whether the cache has both archives."""
        return self.app.exists() and self.dependencies.exists()

    def collect(self) -> list[Path]:
        """Return the files of the source tree that make the release."""
        found: list[Path] = []
        for name in self.files:
            path = self.source / name
            if not path.exists():
                raise BuildError(f"{path} does not exist: correct app_source or app_source_files.")
            found += [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        return sorted(p for p in set(found) if not IGNORED.search(p.relative_to(self.source).as_posix()))

    def detect_version(self) -> str:
        """Return the version that the wheel or the project declares."""
        if self.is_wheel:
            return self.source.name.split("-")[1]
        pyproject = self.source / "pyproject.toml"
        if not pyproject.is_file():
            raise BuildError(f"{pyproject} does not exist: app_source must be a Python project or a wheel.")
        config = tomllib.loads(pyproject.read_text())
        if version := config.get("project", {}).get("version"):
            return str(version)
        attribute = (
            config.get("tool", {}).get("setuptools", {}).get("dynamic", {}).get("version", {}).get("attr", "")
        )
        module, _, name = attribute.rpartition(".")
        for path in self.sources:
            if module and path.relative_to(self.source).as_posix() in (
                f"{module.replace('.', '/')}.py",
                f"{module.replace('.', '/')}/__init__.py",
            ):
                match = re.search(rf"^{name}\b[^=\n]*=\s*[\"']([^\"']+)[\"']", path.read_text(), re.MULTILINE)
                if match:
                    return match[1]
        raise BuildError(f"{pyproject} does not say the version: set app_version.")

    def pip(self, *arguments: str, **environment: str) -> None:
        done = subprocess.run(  # noqa: S603 - the arguments are ours
            [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
        if done.returncode:
            errors = re.findall(r"^\s*ERROR: (.*)", done.stderr, re.MULTILINE) or done.stderr.splitlines()
            raise BuildError(f"pip could not {arguments[0]}: {' '.join(errors[-2:]) or 'no reason given'}")

    def install(self, target: Path) -> None:
        """Install the locked dependencies for the target's Python and platform into a directory."""
        done = subprocess.run(  # noqa: S603 - the arguments are ours
            [
                *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-progress", "--color=never"),
                *(f"--python={sys.executable}", f"--target={target}", f"--requirements={self.lock}"),
                f"--python-version={self.python}",
                f"--python-platform={PLATFORM.format(architecture=self.arch)}",
                *("--no-deps", "--only-binary=:all:", "--require-hashes", "--no-compile-bytecode"),
            ],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            # pip trusts the system's CA certificates, too.
            env={"UV_SYSTEM_CERTS": "true", **os.environ},
        )
        if done.returncode:
            raise BuildError(self.install_error(done.stderr))
        target.mkdir(exist_ok=True)  # an empty lock

    def install_error(self, text: str) -> str:
        """Return uv's errors as one sentence."""
        if unhashed := re.search(r"must have a hash, but none were provided for: (.+)", text):
            return f"{self.lock} has no hash for {unhashed[1]}: lock it with hashes."
        if unusable := re.search(r"Because (\S+) has no(?: usable)? wheels", text):
            return f"{unusable[1]} has no wheel for Python {self.short} on {self.arch}: lock another version."
        reasons = re.findall(r"^\s*(?:error|cause): (.+)", text, re.MULTILINE) or text.splitlines()[-1:]
        return f"uv could not install {self.lock}: {': '.join(reasons) or 'no reason given'}"

    def pack_dependencies(self, work: Path, packages: str) -> None:
        """Install the dependencies, pack them, and write their names and versions beside the archive."""
        target = work / "packages"
        self.install(target)
        found = metadata.distributions(path=[str(target)])
        names = sorted(f"{canonicalize_name(one.metadata['Name'])}=={one.version}" for one in found)
        listed = work / self.packages.name
        listed.write_text(json.dumps(names))
        with packing(self.dependencies, work) as tree:
            for path in sorted(target.rglob("*")):
                name = path.relative_to(target)
                if is_used(name) and path.is_file():
                    content = used_records(path.read_bytes()) if name.name == "RECORD" else path.read_bytes()
                    mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                    add(tree, f"{packages}/{name.as_posix()}", content, mode)
            # The app's code lies beside the dependencies, so that another release can share these.
            add(tree, f"{packages}/app.pth", b"../../../../code\n", 0o644)
            listed.replace(self.packages)

    def wheel(self, work: Path) -> Path:
        """Build the app's wheel from a copy of the listed files, so that no other file can get in."""
        if self.is_wheel:
            return self.source
        # The same for every target, unless it is compiled.
        kept = self.cache / f"wheel-{self.release}"
        if kept.is_dir():
            return next(kept.iterdir())
        tree = work / "source"
        for path in self.sources:
            copy = tree / path.relative_to(self.source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        config = tomllib.loads((tree / "pyproject.toml").read_text())
        backend = config.get("build-system", {}).get("requires", ["setuptools"])
        options = ["--no-build-isolation"] if all(map(satisfied, backend)) else []
        options += ["--no-deps", f"--wheel-dir={work / 'built'}"]
        self.pip("wheel", *options, str(tree), SOURCE_DATE_EPOCH=str(EPOCH))
        built = next((work / "built").iterdir())
        ours = "{}.{}".format(*sys.version_info)
        if built.name.endswith("-none-any.whl"):
            built = built.parent.rename(kept) / built.name
        elif not self.python.startswith(f"{ours}."):
            raise BuildError(
                f"{built.name} is compiled for Python {ours}, not {self.python}: set app_source to a wheel."
            )
        return built

    def check_dependencies(self, wheel: Path, packages: list[str]) -> None:
        """Raise BuildError if the lock lacks a dependency of the app, which only its start would show."""
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            needed = HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
        locked = {package.partition("==")[0] for package in packages}
        for requirement in map(Requirement, needed):
            if requirement.marker is None and canonicalize_name(requirement.name) not in locked:
                raise BuildError(f"{self.lock} lacks {requirement.name}, which the app needs: lock it anew.")

    def run(self) -> None:
        """Build what the cache lacks."""
        folder = f"venv/lib/python{self.short}/site-packages"
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="build-") as directory:
            work = Path(directory)
            wheel = self.wheel(work)
            if not (self.dependencies.exists() and self.packages.exists()):
                self.pack_dependencies(work, folder)
            packages = json.loads(self.packages.read_text())
            self.check_dependencies(wheel, packages)
            release = {
                "id": self.release,
                "version": self.version,
                "python": self.short,
                "architecture": self.arch,
                "dependencies": self.dependencies_id,
                "packages": packages,
            }
            with packing(self.app, work) as tree:
                add(tree, "release.json", (json.dumps(release, indent=2) + "\n").encode(), 0o644)
                add_wheel(tree, "code", wheel)
        for pattern in ("app-*", "dependencies-*", "packages-*", "wheel-*"):
            for old in sorted(self.cache.glob(pattern), key=lambda path: path.stat().st_mtime)[:-KEEP]:
                if old.is_dir():
                    shutil.rmtree(old)
                else:
                    old.unlink()


def is_used(path: PurePath) -> bool:
    """Return whether a file of the installed dependencies goes into the archive."""
    return path.parts[0] not in UNUSED_FOLDERS and path.name not in UNUSED_FILES


def used_records(content: bytes) -> bytes:
    """Return a RECORD, the list of a distribution's files, without the files that the archive has not."""
    rows = sorted(row for row in csv.reader(content.decode().splitlines()) if is_used(PurePath(row[0])))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def satisfied(requirement: str) -> bool:
    """Return whether this interpreter has a build requirement, so that no unlocked download is needed."""
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


@contextlib.contextmanager
def packing(archive: Path, work: Path) -> Iterator[tarfile.TarFile]:
    """Write an archive, byte for byte the same every time, and move it into place when it is complete."""
    fresh = work / archive.name
    with (
        fresh.open("wb") as target,
        gzip.GzipFile(filename="", fileobj=target, mode="wb", compresslevel=1, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tree,
    ):
        yield tree
    fresh.replace(archive)


def add_wheel(tree: tarfile.TarFile, folder: str, wheel: Path) -> None:
    """Add the files of a wheel to an archive."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in sorted(archive.infolist(), key=lambda item: item.filename):
            path = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", entry.filename)
            if entry.is_dir() or re.match(r"[^/]+\.data/", path):
                continue
            mode = 0o755 if entry.external_attr >> 16 & 0o100 else 0o644
            add(tree, f"{folder}/{path}", archive.read(entry), mode)


def add(tree: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    """Add a file to an archive."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), mode, EPOCH
    tree.addfile(entry, io.BytesIO(content))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "str", "required": True},
            "requirements": {"type": "path", "required": True},
            "version": {"type": "str", "default": ""},
            "python_version": {"type": "str", "required": True},
            "architecture": {"type": "str", "required": True},
            "cache": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=f"The control node's {sys.executable} cannot build releases: {MISSING}.")
    os.umask(0o022)
    try:
        build = Build(module.params)
        changed = not build.is_built
        if changed and not module.check_mode:
            build.cache.mkdir(parents=True, exist_ok=True)
            # The hosts of a play build at the same time: the first one does, the others wait for it.
            with (build.cache / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                changed = not build.is_built
                if changed:
                    build.run()
    except BuildError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"The release could not be built: {error}.")
    module.exit_json(
        changed=changed,
        release=build.release,
        app=str(build.app),
        dependencies=str(build.dependencies),
        dependencies_id=build.dependencies_id,
        python=build.short,
    )


if __name__ == "__main__":
    main()
