"""Install the packages of a release for its target's Python, with uv on the control node."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from ansible_collections.fastmetal.metal.plugins.module_utils.dependency_lock import Lock, join_lines, normal
from ansible_collections.fastmetal.metal.plugins.module_utils.uv import (
    FaultsError,
    UnreachableError,
    Uv,
    UvError,
)
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

# A build that needs one of them fails at once: its result would be for the control node's Python and glibc.
COMPILERS = (
    "cc",
    "c++",
    "gcc",
    "g++",
    "clang",
    "clang++",
    "cmake",
    "cargo",
    "rustc",
    "rustup",
    "gfortran",
    "go",
)
NO_COMPILER = "#!/bin/sh\necho 'error: needs a compiler ('${0##*/}')' >&2\nexit 1\n"
UNUSABLE = re.compile(
    r"Because (\S+) has no(?: usable)? wheels|[Pp]ackage `([^`]+)` can't be installed because"
    r"|Distribution `([^`]+)` can't be installed because"
)


class Installer:
    """Packages for one target.

    server: Requirements of the worker, with hashes.
    python: The target's full Python version.
    """

    def __init__(self, uv: Uv, lock: Lock, server: str, python: str, architecture: str) -> None:
        self.uv = uv
        self.lock = lock
        self.server = server
        self.python = python
        self.short = ".".join(python.split(".")[:2])
        self.arch = architecture

    def install(
        self, target: Path, sources: list[str], what: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Install packages, and nothing else, into a directory; raise UvError."""
        tools = target.parent / "compilers"
        for name in COMPILERS if not tools.exists() else ():
            tools.mkdir(exist_ok=True)
            (tools / name).write_text(NO_COMPILER)
            (tools / name).chmod(0o755)
        given = {"PATH": f"{tools}:{os.environ['PATH']}", "CC": "cc", "CXX": "c++"}
        # The oldest glibc among the supported Debian releases is 2.36 (Debian 12).
        self.uv(
            *("pip", "install", "--preview-features=pylock", f"--python={sys.executable}"),
            *(f"--target={target}", f"--python-version={self.python}"),
            *(f"--python-platform={self.arch}-manylinux_2_36", "--no-deps", "--no-compile-bytecode"),
            *("--no-python-downloads", *sources),
            what=what,
            environment={**given, **(environment or {})},
        )

    def install_locked(self, target: Path, work: Path) -> None:
        """Install the locked dependencies; raise FaultsError with every package that cannot be."""
        faults: list[str] = []
        text = self.lock.text
        file = work / ("pylock.toml" if self.lock.is_pylock else "requirements.txt")
        while text.strip():
            file.write_text(text)
            try:
                self.install(target, [f"--requirements={file}", "--require-hashes"], self.what)
            except UvError as error:
                name, sentence = self.package_fault(error)
                faults.append(sentence)
                # The others may have faults, too.
                rest = self.lock.without(text, name)
                if not name or rest == text:
                    raise (
                        UnreachableError(faults) if error.is_unreachable else FaultsError(faults)
                    ) from None
                text = rest
            else:
                break
        for requirement in self.lock.vcs:
            try:
                self.install(target, [requirement], f"uv could not install {requirement}")
            except UvError as error:
                faults.append(f"{error}.")
        target.mkdir(exist_ok=True)  # an empty lock
        faults += [self.compiler_sentence(name, "") for name in compiled(target)]
        if faults:
            raise FaultsError(faults)
        self.add_server(target, work)

    @property
    def what(self) -> str:
        """The beginning of a sentence about the lock."""
        return f"uv could not install {self.lock.path}"

    def package_fault(self, error: UvError) -> tuple[str, str]:
        """Return the package that cannot be installed, or nothing, and a sentence."""
        text = " ".join(error.output.split())
        if unhashed := re.search(r"must have a hash, but none were provided for: (\S+)", text):
            name = re.split(r"[=<>!~ ]", unhashed[1])[0]
            return name, f"{self.lock.path} has no hash for {unhashed[1]}: lock it with hashes."
        if unusable := UNUSABLE.search(text):
            name = next(filter(None, unusable.groups()))
            return name.partition("==")[0], (
                f"{name} has no wheel for Python {self.short} on {self.arch}: lock another version."
            )
        if broken := re.search(r"Failed to (?:download and )?build `([^`]+)`", text):
            name = broken[1]
            return name.partition("==")[0], self.compiler_sentence(
                name, str(error).removeprefix(f"{self.what}: ")
            )
        return "", f"{error}."

    def compiler_sentence(self, name: str, reason: str) -> str:
        """Return the sentence about a package whose source cannot be built here."""
        because = f" ({reason})" if reason else ""
        return (
            f"{name} has no wheel for Python {self.short} on {self.arch}, and its source is not pure Python"
            f"{because}: lock a version that has one, or build its wheel on such a machine by `pip wheel`"
            " and name the directory in find_links."
        )

    def add_server(self, target: Path, work: Path) -> None:
        """Install what the worker needs where the lock lacks it or has an older version."""
        versions = installed(target)
        missing = []
        for line in join_lines(self.server, work):
            requirement = Requirement(line.partition(" --hash")[0])
            if requirement.marker is None or requirement.marker.evaluate(self.environment()):
                pinned = Version(str(requirement.specifier).removeprefix("=="))
                name = normal(requirement.name)
                if name not in versions or Version(versions[name]) < pinned:
                    missing.append((name, pinned, line))
        if not missing:
            return
        file = work / "server.txt"
        file.write_text("".join(f"{line}\n" for _, _, line in missing))
        self.install(target, [f"--requirements={file}", "--require-hashes"], "uv could not install Gunicorn")
        pins = {name: pinned for name, pinned, _ in missing}
        faults = []
        for package in metadata.distributions(path=[str(target)]):
            for needed in map(Requirement, package.requires or []):
                version = pins.get(normal(needed.name))
                if version and self.applies(needed) and not accepts(needed, version):
                    faults.append(
                        f"{package.name} {package.version} in {self.lock.path} needs {needed.name}"
                        f"{needed.specifier}, and the service runs with {needed.name} {version}: lock a"
                        f" version of {package.name} that accepts it, or remove it."
                    )
        if faults:
            raise FaultsError(faults)

    def environment(self) -> dict[str, str]:
        """Return the target's values of environment markers."""
        return {
            "python_version": self.short,
            "python_full_version": self.python if self.python.count(".") > 1 else f"{self.python}.0",
            "platform_machine": self.arch,
            "extra": "",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }

    def applies(self, requirement: Requirement) -> bool:
        """Return whether a requirement holds on the target."""
        return requirement.marker is None or requirement.marker.evaluate(self.environment())


def installed(target: Path) -> dict[str, str]:
    """Return the versions of the packages in a directory, by name."""
    return {normal(one.metadata["Name"]): one.version for one in metadata.distributions(path=[str(target)])}


def compiled(target: Path) -> Iterator[str]:
    """Yield the packages that were compiled here, for the control node's Python."""
    for wheel in sorted(target.glob("*.dist-info/WHEEL")):
        # uv writes it if it has built the package.
        if (wheel.parent / "uv_build.json").exists():
            tags = re.findall(r"^Tag: (\S+)", wheel.read_text(), re.MULTILINE)
            if not all(tag.endswith("-none-any") for tag in tags):
                name, _, version = wheel.parent.name.removesuffix(".dist-info").partition("-")
                yield f"{name}=={version}"


def accepts(requirement: Requirement, version: Version | str) -> bool:
    """Return whether a requirement accepts a version."""
    return requirement.specifier.contains(version, prereleases=True)


def satisfied(requirement: str) -> bool:
    """Return whether this interpreter has a build requirement, so that no unlocked download is needed."""
    wanted = Requirement(requirement)
    try:
        return accepts(wanted, metadata.version(wanted.name))
    except metadata.PackageNotFoundError:
        return False


def is_version(text: str) -> bool:
    """Return whether a text is a version of a Python package."""
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True
