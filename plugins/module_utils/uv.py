"""Run uv on the control node, and say in one sentence why it failed."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

UNREACHABLE = re.compile(r"error sending request|dns error|Network connectivity is disabled|timed out")
FIRST_ERROR = re.compile(
    r"^(?:[\w.]+(?:Error|Exception|NotFound)|error|fatal error|fatal)\b:? .+", re.IGNORECASE
)


class BuildError(Exception):
    """A failure, as one sentence for the operator."""


class FaultsError(BuildError):
    """Several failures, each as one sentence."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self.sentences = list(dict.fromkeys(sentences))
        super().__init__(" ".join(self.sentences))


class UnreachableError(FaultsError):
    """A package index does not answer, which says nothing about the lock."""


class UvError(BuildError):
    """A failure of uv; `output` is what it printed."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output

    @property
    def is_unreachable(self) -> bool:
        """Whether a package index does not answer."""
        return bool(UNREACHABLE.search(self.output))


class Uv:
    """uv with the package indexes of a service.

    indexes: index_url, extra_index_urls, find_links and index_credentials, {host: {username, password}}.
    folder: The app's directory, whose own settings of uv apply.
    """

    def __init__(self, indexes: Mapping[str, Any], folder: Path) -> None:
        self.folder = folder
        self.credentials: Mapping[str, Mapping[str, str]] = indexes.get("index_credentials") or {}
        # In the environment, as a command line is visible to every user of the control node.
        settings = {
            "UV_DEFAULT_INDEX": indexes.get("index_url") or "",
            "UV_INDEX": " ".join(indexes.get("extra_index_urls") or []),
            "UV_FIND_LINKS": ",".join(indexes.get("find_links") or []),
        }
        self.settings = {name: value for name, value in settings.items() if value}

    def __call__(
        self,
        *arguments: str,
        what: str,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Return the output of a uv command; raise UvError, whose sentence begins with `what`."""
        with self.logins() as login:
            given = {**self.settings, **login, **(environment or {})}
            done = subprocess.run(  # noqa: S603 - the arguments are ours
                [sys.executable, "-m", "uv", "--quiet", "--no-progress", "--color=never", *arguments],
                cwd=cwd or self.folder,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                # pip trusts the system's CA certificates, too.
                env={"UV_SYSTEM_CERTS": "true", **os.environ, **given},
            )
        if done.returncode:
            raise UvError(f"{what}: {first_error(done.stderr)}", done.stderr)
        return done.stdout

    @contextlib.contextmanager
    def logins(self) -> Iterator[dict[str, str]]:
        """Write the credentials, and the operator's own, into a file that only this user reads."""
        if not self.credentials:
            yield {}
            return
        own = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        with tempfile.NamedTemporaryFile("w", prefix="fastmetal-netrc-") as file:
            for host, login in self.credentials.items():
                file.write(f"machine {host} login {login['username']} password {login['password']}\n")
            if own.is_file():
                file.write(own.read_text())
            file.flush()
            yield {"NETRC": file.name}


def credential_faults(credentials: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each entry of index_credentials that a netrc file cannot have."""
    for host, login in credentials.items():
        if not isinstance(login, Mapping) or set(login) != {"username", "password"}:
            yield f"index_credentials.{host} must have the keys username and password."
        elif any(re.search(r"\s|^$", str(text)) for text in login.values()):
            yield f"index_credentials.{host} is empty or has a space: correct it."


def first_error(text: str) -> str:
    """Return the first error that a tool printed, as one line."""
    # What a build backend printed comes after uv's own summary, indented below [stderr] or [stdout].
    if build := re.search(
        r"^\s*\[stderr\]\n(.*?)(?=^hint:|^\s*\[stdout\]|\Z)", text, re.MULTILINE | re.DOTALL
    ):
        lines = [line.strip() for line in build[1].splitlines() if line.strip()]
        named = [line for line in lines if FIRST_ERROR.match(line)]
        return one_line((named or lines or ["no reason given"])[0])
    causes = re.findall(
        r"^\s*(?:error|cause): (.+(?:\n(?!\s*(?:error|cause|hint):)\s+\S.*)*)", text, re.MULTILINE
    )
    # uv does not find a package in an index that refuses the login.
    refused = re.search(r"An index URL \(\S+\) could not be queried[^.]*", " ".join(text.split()))
    return one_line(refused[0] if refused else ": ".join(causes) or text or "no reason given")


def one_line(text: str) -> str:
    """Return a text in one line, without its last full stop and without logins."""
    return hide_logins(" ".join(text.split())).rstrip(".")


def hide_logins(text: str) -> str:
    """Return a text without the logins in its addresses."""
    return re.sub(r"//[^/@\s]+@", "//", text)
