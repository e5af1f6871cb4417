#!/usr/bin/python
"""Build one release of an ASGI app for one target Python: deterministic archives, cached by content."""

from __future__ import annotations

import contextlib
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
from pathlib import Path
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
module: app_artifact
short_description: Build the archives of a release, once per content
description:
  - Builds the app's wheel, fetches its hash-locked dependencies as wheels for the target's Python and
    repacks each into an archive that a host only has to unpack. Runs on the control host.
  - The dependencies are an archive of their own, as most releases share them with the one before.
  - The release id depends on nothing but the app's files, the lock and the version.
author: Fastmetal
options:
  source: {type: path, required: true, description: "The source tree, or a wheel."}
  files: {type: list, elements: str, required: true, description: "What of the tree goes into the build."}
  requirements: {type: path, required: true, description: "The hash lock; environment markers are honoured."}
  version: {type: str, default: "", description: "The version; empty takes it from pyproject.toml."}
  python_version: {type: str, required: true, description: "The target's full Python version."}
  architecture: {type: str, required: true, description: "The target's machine architecture."}
  cache: {type: path, required: true, description: "Where archives and wheels are kept."}
"""

RETURN = r"""
release: {type: str, returned: success, description: "The release id."}
app: {type: str, returned: success, description: "The path of the archive with the app's own code."}
dependencies: {type: str, returned: success, description: "The path of the archive with its dependencies."}
dependencies_id: {type: str, returned: success, description: "What the dependencies are known by."}
python: {type: str, returned: success, description: "The Python it is for, as 3.13."}
"""

EXAMPLES = r"""
- name: Build the release
  app_artifact:
    source: /srv/checkout
    files: [pyproject.toml, app]
    requirements: /srv/checkout/requirements-app.txt
    python_version: 3.13.5
    architecture: x86_64
    cache: /srv/checkout/.artifacts
"""

FORMAT = "2"  # part of every id: raise it when the archives' layout changes
EPOCH = 315532800  # 1980, the first time a zip archive can hold
KEEP = 10
IGNORED = re.compile(r"(^|/)(__pycache__|\.[^/]*_cache|[^/]*\.egg-info)(/|$)|\.py[co]$")


class BuildError(Exception):
    """One sentence that says what to do."""


class Build:
    """One release for one target."""

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
        self.dependencies_id = f"{hashlib.sha256(lock).hexdigest()[:12]}-{target}"
        self.app = self.cache / f"app-{self.release}-{target}.tar.gz"
        self.dependencies = self.cache / f"dependencies-{self.dependencies_id}.tar.gz"

    @property
    def is_built(self) -> bool:
        return self.app.exists() and self.dependencies.exists()

    def collect(self) -> list[Path]:
        """The files of the source tree that make the release."""
        found: list[Path] = []
        for name in self.files:
            path = self.source / name
            if not path.exists():
                raise BuildError(f"{path} does not exist: correct app_source or app_source_files.")
            found += [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        return sorted(p for p in set(found) if not IGNORED.search(p.relative_to(self.source).as_posix()))

    def detect_version(self) -> str:
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

    def requirements(self) -> dict[str, str]:
        """The lock's lines whose markers hold on the target (pip would ask the control host's Python)."""
        environment = {
            "extra": "",
            "implementation_name": "cpython",
            "implementation_version": self.python,
            "os_name": "posix",
            "platform_machine": self.arch,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.python,
            "python_version": self.short,
            "sys_platform": "linux",
        }
        text = re.sub(r"(^|\s)#.*", "", self.lock.read_text().replace("\\\n", " "))
        lines: dict[str, str] = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            if line.startswith("-"):
                continue
            specifier, *hashes = re.split(r"\s+--hash=", line)
            requirement = Requirement(specifier)
            if not hashes:
                raise BuildError(f"{self.lock} has no hash for {requirement.name}: lock it with hashes.")
            if requirement.marker is None or requirement.marker.evaluate(environment):
                words = [f"{requirement.name}{requirement.specifier}", *hashes]
                lines[canonicalize_name(requirement.name)] = " --hash=".join(map(str.strip, words))
        return lines

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

    def fetch(self, lines: dict[str, str], work: Path) -> list[Path]:
        """Fetch the wheels of this lock and target."""
        listed, wheels = work / "requirements.txt", work / "wheels"
        listed.write_text("\n".join(lines.values()) + "\n")
        wheels.mkdir()
        # 2.36 is the oldest glibc among the supported releases (Debian 12).
        tags = [*(f"manylinux_2_{minor}" for minor in range(36, 16, -1)), "manylinux2014"]
        if lines:
            self.pip(
                "download",
                *("--no-deps", "--only-binary=:all:", "--require-hashes", "--implementation=cp"),
                f"--python-version={self.short}",
                *(f"--platform={tag}_{self.arch}" for tag in tags),
                f"--dest={wheels}",
                f"--requirement={listed}",
            )
        return sorted(wheels.glob("*.whl"))

    def wheel(self, work: Path) -> Path:
        """Build the app's wheel from a copy of the listed files, so that nothing else can get in."""
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

    def check_dependencies(self, wheel: Path, lines: dict[str, str]) -> None:
        """A dependency that the lock lacks would only show when the service starts."""
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            needed = HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
        for requirement in map(Requirement, needed):
            if requirement.marker is None and canonicalize_name(requirement.name) not in lines:
                raise BuildError(f"{self.lock} lacks {requirement.name}, which the app needs: renew it.")

    def run(self) -> None:
        lines = self.requirements()
        packages = f"venv/lib/python{self.short}/site-packages"
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="build-") as directory:
            work = Path(directory)
            wheel = self.wheel(work)
            self.check_dependencies(wheel, lines)
            if not self.dependencies.exists():
                with packing(self.dependencies, work) as tree:
                    for fetched in self.fetch(lines, work):
                        add_wheel(tree, packages, fetched)
                    # The app's code lies beside them, so that another release can have the same.
                    add(tree, f"{packages}/app.pth", b"../../../../code\n", 0o644)
            about = {
                "id": self.release,
                "version": self.version,
                "python": self.short,
                "architecture": self.arch,
                "dependencies": self.dependencies_id,
                "packages": sorted(line.split(" ", 1)[0] for line in lines.values()),
            }
            with packing(self.app, work) as tree:
                add(tree, "release.json", (json.dumps(about, indent=2) + "\n").encode(), 0o644)
                add_wheel(tree, "code", wheel)
        for pattern in ("app-*", "dependencies-*", "wheel-*"):
            for old in sorted(self.cache.glob(pattern), key=lambda path: path.stat().st_mtime)[:-KEEP]:
                if old.is_dir():
                    shutil.rmtree(old)
                else:
                    old.unlink()


def satisfied(requirement: str) -> bool:
    """Whether this interpreter has a build requirement, so that no unlocked download is needed."""
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


@contextlib.contextmanager
def packing(archive: Path, work: Path) -> Iterator[tarfile.TarFile]:
    """Write an archive, byte for byte the same every time, and keep it once it is whole."""
    fresh = work / archive.name
    with (
        fresh.open("wb") as target,
        gzip.GzipFile(filename="", fileobj=target, mode="wb", compresslevel=1, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tree,
    ):
        yield tree
    fresh.replace(archive)


def add_wheel(tree: tarfile.TarFile, place: str, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for entry in sorted(archive.infolist(), key=lambda item: item.filename):
            path = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", entry.filename)
            # Scripts name the builder's interpreter: everything is run with "python -m".
            if entry.is_dir() or re.match(r"[^/]+\.data/", path):
                continue
            mode = 0o755 if entry.external_attr >> 16 & 0o100 else 0o644
            add(tree, f"{place}/{path}", archive.read(entry), mode)


def add(tree: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), mode, EPOCH
    tree.addfile(entry, io.BytesIO(content))


def main() -> None:
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
        module.fail_json(msg=f"The control host's {sys.executable} cannot build releases: {MISSING}.")
    os.umask(0o022)
    try:
        build = Build(module.params)
        changed = not build.is_built
        if changed and not module.check_mode:
            build.cache.mkdir(parents=True, exist_ok=True)
            # Hosts of one play ask at the same time; the first builds, the others find it done.
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
