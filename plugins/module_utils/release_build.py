"""Build a release of an ASGI app for one target Python: reproducible archives, cached by content."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from ansible_collections.fastmetal.metal.plugins.module_utils import app_tree, archives
from ansible_collections.fastmetal.metal.plugins.module_utils.dependency_lock import (
    Lock,
    config,
    find_lock,
    join_lines,
    normal,
    public_text,
    read_lock,
)
from ansible_collections.fastmetal.metal.plugins.module_utils.release_packages import (
    Installer,
    accepts,
    compiled,
    installed,
    is_version,
    satisfied,
)
from ansible_collections.fastmetal.metal.plugins.module_utils.uv import (
    BuildError,
    FaultsError,
    Uv,
    credential_faults,
)
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

FORMAT = "4"  # part of every id: raise it when the archives' layout changes
KEEP = 20
VERSION_VARIABLES = (
    "SETUPTOOLS_SCM_PRETEND_VERSION",
    "PDM_BUILD_SCM_VERSION",
    "UV_DYNAMIC_VERSIONING_BYPASS",
)

SPEC = {
    "source": {"type": "path", "required": True},
    "subdirectory": {"type": "str", "default": ""},
    "files": {"type": "list", "elements": "str", "default": []},
    "include": {"type": "list", "elements": "str", "default": []},
    "requirements": {"type": "str", "default": ""},
    "server": {"type": "path", "required": True},
    "indexes": {"type": "dict", "default": {}},
    "version": {"type": "str", "default": ""},
    "commit": {"type": "str", "default": ""},
    "python_version": {"type": "str", "required": True},
    "python_id": {"type": "str", "default": ""},
    "architecture": {"type": "str", "required": True},
    "cache": {"type": "path", "required": True},
}


class Build:
    """A release for one target; the options are those of the module release_artifact."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.source = Path(options["source"])
        self.cache = Path(options["cache"])
        python, architecture = options["python_version"], options["architecture"]
        if not self.source.exists():
            raise BuildError(f"The app's source {self.source} does not exist: set app_source.")
        self.is_wheel = self.source.is_file()
        self.tree = self.source if self.is_wheel else self.source / options["subdirectory"]
        if not self.tree.exists():
            raise BuildError(
                f"{self.source} has no directory {options['subdirectory']}: correct app_subdirectory."
            )
        self.config = {} if self.is_wheel else config(self.tree)
        self.sources = (
            [] if self.is_wheel else app_tree.app_files(self.tree, options["files"], options["include"])
        )
        indexes = options["indexes"]
        if faults := list(credential_faults(indexes.get("index_credentials") or {})):
            raise FaultsError(faults)
        folder = self.source.parent if self.is_wheel else self.tree
        links = [one if "://" in one else str(folder / one) for one in indexes.get("find_links") or []]
        uv = Uv({**indexes, "find_links": links}, folder)
        self.lock = self.find_lock(options["requirements"], uv, python)
        # The range of a project is judged by the role.
        fits = SpecifierSet(self.lock.python).contains(python, prereleases=True)
        if self.lock.path.name != "uv.lock" and not fits:
            raise BuildError(
                f"{self.lock.path} is for Python {self.lock.python}, and the release runs with {python}: lock"
                " the dependencies for it."
            )
        server = Path(options["server"]).read_text()
        self.packages = Installer(uv, self.lock, server, python, architecture)
        self.short = self.packages.short
        self.version: str = options["version"] or self.declared_version() or options["commit"] or "0"
        self.commit: str = options["commit"]
        # The app is among its own path dependencies in the lock of a workspace.
        self.local = [path for path in self.lock.local if path.resolve() != self.tree.resolve()]
        text = public_text(self.lock) + server + options.get("python_id", "")
        self.release = re.sub(r"[^A-Za-z0-9._]", ".", self.version) + "-" + self.digest(text)
        target = f"py{python}-{architecture}"
        self.dependencies_id = f"{hashlib.sha256((FORMAT + text).encode()).hexdigest()[:12]}-{target}"
        self.app = self.cache / f"app-{self.release}-{target}.tar.gz"
        self.dependencies = self.cache / f"dependencies-{self.dependencies_id}.tar.gz"
        self.listed = self.cache / f"packages-{self.dependencies_id}.json"

    @property
    def is_built(self) -> bool:
        """Whether the cache has both archives."""
        return self.app.exists() and self.dependencies.exists()

    def result(self) -> dict[str, str]:
        """Return what the module returns."""
        return {
            "release": self.release,
            "app": str(self.app),
            "dependencies": str(self.dependencies),
            "dependencies_id": self.dependencies_id,
            "python": self.short,
        }

    def notes(self) -> list[str]:
        """Return what the operator should know of the build."""
        if not self.lock.is_resolved:
            return []
        return [
            f"{self.lock.path} has no hashes, so the versions were chosen now. The lock is requirements.lock"
            f" in the release {self.release}: commit it beside {self.lock.path.name}, so that other control"
            " nodes take the same."
        ]

    def find_lock(self, wanted: str, uv: Uv, python: str) -> Lock:
        """Return the locked dependencies."""
        root = self.source.parent if self.is_wheel else self.source
        tree = root if self.is_wheel else self.tree
        path = self.source if self.is_wheel and not wanted else find_lock(tree, root, wanted)
        return read_lock(path, tree, root, uv, python, self.cache)

    def declared_version(self) -> str:
        """Return the version that the wheel or the project declares, or nothing."""
        if self.is_wheel:
            return self.source.name.split("-")[1]
        return app_tree.declared_version(self.config, self.tree)

    def digest(self, text: str) -> str:
        """Return a hash of everything that makes the release."""
        digest = hashlib.sha256(f"{FORMAT}\n{self.version}\n{text}".encode())
        for path in self.local:
            files = app_tree.app_files(path, [], []) if path.is_dir() else [path]
            self.add_to(digest, files, path if path.is_dir() else path.parent)
        if self.is_wheel:
            self.add_to(digest, [self.source], self.source.parent)
        self.add_to(digest, self.sources, self.tree)
        return digest.hexdigest()[:12]

    def add_to(self, digest: Any, files: Iterable[Path], tree: Path) -> None:
        """Add files to a hash."""
        for path in files:
            content = app_tree.content(path, tree)
            digest.update(f"\n{path.relative_to(tree).as_posix()} {len(content)}\n".encode() + content)

    def pack_dependencies(self, work: Path, folder: str) -> None:
        """Install the dependencies, pack them, and write their versions and commands beside the archive."""
        target = work / "packages"
        self.packages.install_locked(target, work)
        about = {
            "packages": [f"{name}=={version}" for name, version in sorted(installed(target).items())],
            "scripts": archives.scripts(target, f"python{self.short}"),
        }
        listed = work / self.listed.name
        listed.write_text(json.dumps(about))
        with archives.packing(self.dependencies, work) as tree:
            archives.add_installed(tree, folder, target)
        listed.replace(self.listed)

    # --- the app's own code

    def install_app(self, work: Path) -> Path:
        """Install the app, if it is a package, and nothing else."""
        target = work / "app"
        target.mkdir()
        if self.is_wheel:
            self.packages.install(target, [str(self.source)], f"uv could not install {self.source}")
        elif app_tree.is_package(self.config, self.tree):
            self.install_tree(self.tree, self.sources, work / "source", target)
        return target

    def install_local(self, work: Path) -> Path:
        """Install the path dependencies."""
        target = work / "local"
        target.mkdir()
        for number, path in enumerate(self.local):
            if path.is_dir():
                self.install_tree(path, app_tree.app_files(path, [], []), work / f"local-{number}", target)
            else:
                self.packages.install(target, [str(path)], f"uv could not install {path}")
        return target

    def install_tree(self, tree: Path, files: list[Path], copy: Path, target: Path) -> None:
        """Build a package from a copy of its files, so that no other file can get in, and install it."""
        app_tree.copy_files(files, tree, copy)
        backend = config(copy).get("build-system", {}).get("requires", ["setuptools"])
        options = ["--no-build-isolation"] if all(map(satisfied, backend)) else []
        version = self.version if is_version(self.version) else "0+" + re.sub(r"\W", ".", self.version)
        # Projects that take their version from Git have no repository here.
        given = dict.fromkeys(VERSION_VARIABLES, version) if tree == self.tree else {}
        given["SOURCE_DATE_EPOCH"] = str(archives.EPOCH)
        # Where the path dependencies of a workspace lie does not matter here.
        options.append("--no-sources")
        self.packages.install(target, [*options, str(copy)], f"{tree} could not be built", given)
        if any(compiled(target)):
            raise BuildError(
                f"{tree} is not pure Python: build its wheel on a machine with Python {self.short} on"
                f" {self.packages.arch}, and set app_source to the wheel."
            )

    def check_dependencies(self, app: Path, local: Path, packages: list[str]) -> None:
        """Raise Faults if the lock lacks a dependency of the app, which only its start would show."""
        locked = dict(package.split("==", 1) for package in packages) | installed(local)
        needed = [
            text
            for path in (app, local)
            for one in metadata.distributions(path=[str(path)])
            for text in one.requires or []
        ]
        if not installed(app):
            needed += self.config.get("project", {}).get("dependencies", [])
        own = {
            normal(Requirement(line.partition(" --hash")[0]).name)
            for line in join_lines(self.packages.server, self.cache)
        }
        faults = []
        for requirement in map(Requirement, needed):
            name = normal(requirement.name)
            if not self.packages.applies(requirement) or name in own:
                continue
            if name not in locked:
                faults.append(
                    f"{self.lock.path} lacks {requirement.name}, which the app needs: lock it anew."
                )
            # A uv.lock may override what its packages ask for.
            elif self.lock.path.name != "uv.lock" and not accepts(requirement, locked[name]):
                faults.append(
                    f"{self.lock.path} has {requirement.name} {locked[name]}, and the app needs"
                    f" {requirement.name}{requirement.specifier}: lock it anew."
                )
        if faults:
            raise FaultsError(faults)

    def code(self, app: Path) -> tuple[dict[str, Path], str]:
        """Return the files of the release's code, and the folder of its modules.

        As in a container, a package is its source tree with its other files (templates, migrations).
        Only what its build has made comes from the installation.
        """
        files = {path.relative_to(self.tree).as_posix(): path for path in self.sources}
        made = {
            path.relative_to(app).as_posix(): path
            for path in sorted(app.rglob("*"))
            if path.is_file()
            and archives.is_used(path.relative_to(app))
            and path.relative_to(app).parts[0] != "bin"
        }
        modules = [name for name in made if not name.partition("/")[0].endswith((".dist-info", ".pth"))]
        for name in files:
            if modules and f"/{name}".endswith(f"/{modules[0]}"):
                root = name.removesuffix(modules[0])
                if all(f"{root}{module}" in files for module in modules):
                    return files | {name: path for name, path in made.items() if name not in modules}, root
        return files | made, ""

    def pack_app(self, work: Path, folder: str, about: dict[str, Any]) -> None:
        """Pack the app's code, the commands, and what is known of the release."""
        app, local = self.install_app(work), self.install_local(work)
        self.check_dependencies(app, local, about["packages"])
        files, root = self.code(app)
        release = {
            "id": self.release,
            "version": self.version,
            "python": self.short,
            "architecture": self.packages.arch,
            "dependencies": self.dependencies_id,
            "packages": about["packages"],
        }
        commands = about["scripts"]
        for target in (local, app):
            commands |= archives.scripts(target, f"python{self.short}")
        paths = dict.fromkeys([f"code/{root}".rstrip("/"), "code", *(["local"] if self.local else [])])
        with archives.packing(self.app, work) as tree:
            archives.add(tree, "release.json", (json.dumps(release, indent=2) + "\n").encode())
            kept = "pylock.toml" if self.lock.is_pylock else "requirements.lock"
            archives.add(tree, kept, public_text(self.lock).encode())
            for name, path in sorted(files.items()):
                if path.is_relative_to(self.tree) and app_tree.is_link(path, self.tree):
                    archives.add_link(tree, f"code/{name}", str(path.readlink()))
                else:
                    content = path.read_bytes()
                    content = (
                        archives.used_records(content) if name.endswith(".dist-info/RECORD") else content
                    )
                    archives.add(tree, f"code/{name}", content, archives.mode(path))
            archives.add_installed(tree, "local", local)
            for name, text in sorted(commands.items()):
                archives.add(tree, f"venv/bin/{name}", text.encode(errors="surrogateescape"), 0o755)
            # The app's code lies beside the dependencies, so that another release can share these.
            archives.add(
                tree, f"{folder}/app.pth", "".join(f"../../../../{path}\n" for path in paths).encode()
            )

    def run(self) -> bool:
        """Build what the cache lacks; return whether it lacked anything."""
        self.cache.mkdir(parents=True, exist_ok=True)
        # The hosts of a play build at the same time: the first one does, the others wait for it.
        with (self.cache / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            changed = not self.is_built
            if changed:
                folder = f"venv/lib/python{self.short}/site-packages"
                with tempfile.TemporaryDirectory(dir=self.cache, prefix="build-") as directory:
                    work = Path(directory)
                    if not (self.dependencies.exists() and self.listed.exists()):
                        self.pack_dependencies(work, folder)
                    self.pack_app(work, folder, json.loads(self.listed.read_text()))
            for used in (self.app, self.dependencies, self.listed):
                used.touch()
            if changed:
                prune(self.cache)
        return changed


def prune(cache: Path) -> None:
    """Remove the archives that were not used for longest."""
    for pattern in ("app-*", "dependencies-*", "packages-*"):
        for old in sorted(cache.glob(pattern), key=lambda path: path.stat().st_mtime)[:-KEEP]:
            old.unlink()
