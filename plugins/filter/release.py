"""Filters of the role app: an app's metadata, releases, files and jobs."""

from __future__ import annotations

import re
import shlex
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

SETTINGS = "app/settings.txt"
UNITS = "/etc/systemd/system"
# Only warnings of the unit itself count, not those of the units that it depends on.
VERIFY = "systemd-analyze verify --recursive-errors=no %s"


def release_metadata(source: str) -> dict[str, Any]:
    """Return what an app's source tree or wheel declares, empty where it declares nothing.

    python: The range of Python versions, such as ">=3.11,<4".
    settings: The names of the settings that the app knows, from app/settings.txt.
    """
    path = Path(source)
    if path.is_dir():
        texts = [path / name for name in ("pyproject.toml", SETTINGS)]
        project, settings = (text.read_text() if text.is_file() else "" for text in texts)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
            metadata = [name for name in names if name.endswith(".dist-info/METADATA")]
            project, settings = (
                "".join(wheel.read(name).decode() for name in names if name in wanted)
                for wanted in (metadata, [SETTINGS])
            )
    else:
        project = settings = ""
    python = re.search(r"^requires-python(?:: | *= *[\"'])([^\"'\n]+)", project, re.MULTILINE | re.IGNORECASE)
    return {"python": python[1] if python else "", "settings": settings.split()}


def in_version_range(version: str, versions: str) -> bool:
    """Return whether a Python version is in a range such as ">=3.11,<4"; an empty range has every version."""
    return SpecifierSet(versions).contains(version, prereleases=True)


def version_of_release(release: str) -> str:
    """Return the version of a release, which is its id without the hash of its content."""
    return re.sub(r"-[0-9a-f]{12}$", "", release)


def release_of_link(target: str) -> str:
    """Return the release of the instance that the link `current` points to (…/RELEASE.NUMBER)."""
    return Path(target).stem if target else ""


def failure_message(result: Mapping[str, Any]) -> str:
    """Return why a task failed: of a loop, why its first item did; without a result, another host failed."""
    for item in result.get("results", ()):
        if item.get("failed") and item.get("msg"):
            return str(item["msg"])
    return str(result.get("msg") or "another host failed")


def load_credentials(names: Iterable[str], directory: str) -> list[str]:
    """Return the unit properties that load the secrets of a directory, each once and in order."""
    return [f"LoadCredential={name}:{directory}/{name}" for name in sorted(set(names))]


def unit_words(command: str) -> str:
    """Return a command in the syntax of units: quoted words, without variables and specifiers."""
    words = (
        word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")
        for word in shlex.split(command)
    )
    return " ".join(f'"{word}"' if re.search(r"[^\w./=:@,+-]", word) or not word else word for word in words)


def shell_words(command: str) -> str:
    """Return a command with each word quoted for a shell."""
    return shlex.join(shlex.split(command))


def is_command(command: str) -> bool:
    """Return whether a command has words and complete quotes, in one line."""
    try:
        return bool(shlex.split(command)) and "\n" not in command
    except ValueError:
        return False


def state_entries(state: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the directories of a service's state with all their keys; `unknown` lists further ones."""
    entries = []
    for item in state:
        own = dict(item) if isinstance(item, Mapping) else {"name": item}
        known = {key: str(own.get(key, "")) for key in ("name", "path", "serve_at")}
        entries.append(known | {"unknown": sorted(set(own) - set(known))})
    return entries


def state_mounts(state: Iterable[Mapping[str, str]], home: str, code: str) -> list[str]:
    """Return the unit properties that show directories of the state where the code expects them."""
    return [f"BindPaths={home}/{entry['name']}:{code}/{entry['path']}" for entry in state if entry["path"]]


def check_requests(requests: Iterable[Mapping[str, Any]], health_path: str) -> list[Mapping[str, Any]]:
    """Return the requests that check a service, its health path first.

    If it has neither, any answer but a server error shows that it works.
    """
    given = [*([{"path": health_path}] if health_path else []), *requests]
    return given or [{"path": "/", "status": [*range(100, 500)]}]


def check_faults(requests: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each request of a check that cannot work."""
    found = []
    for number, wanted in enumerate(requests, 1):
        name = f"app_check_requests: request {number} ({wanted.get('path', '')})"
        if "body" in wanted and "form" in wanted:
            found.append(f"{name} has a body and a form: remove one.")
        if not str(wanted.get("path", "")).startswith(("/", "{")):
            found.append(f"{name} has a path without a slash in front.")
        for kept, where in (wanted.get("keep") or {}).items():
            kind, _, pattern = str(where).partition(" ")
            try:
                groups = re.compile(pattern).groups if kind == "match" else 1
            except re.error:
                groups = 0
            if groups != 1 or not re.fullmatch(r"\w+", str(kept)):
                found.append(f"{name} keeps {kept}: use letters, and one group in a regular expression.")
    return found


def worker_files(jobs: Iterable[Mapping[str, Any]], directory: str) -> list[dict[str, Any]]:
    """Return file_set's entries for the always-on jobs, of which every instance has units of its own."""
    return [
        {
            "path": f"{directory}/{job['name']}.service",
            "template": "worker.service.j2",
            "variables": {"__app_job": job},
        }
        for job in jobs
        if "schedule" not in job
    ]


def job_files(
    jobs: Iterable[Mapping[str, Any]], service: str, *, scheduled: bool = True
) -> list[dict[str, Any]]:
    """Return file_set's entries for the units of a service's scheduled jobs.

    jobs: name, command and schedule.
    scheduled: Whether this host runs the jobs with a schedule.
    """
    files = [job_file(f"{service}-workers.target", "workers.target.j2")]
    for job in jobs:
        unit = f"{service}-job-{job['name']}"
        if scheduled and "schedule" in job:
            files.append(job_file(f"{unit}.service", "job.service.j2", __app_job=job))
            files.append(job_file(f"{unit}.timer", "job.timer.j2", __app_job=job))
    return files


def job_file(unit: str, template: str, **variables: Any) -> dict[str, Any]:
    """Return file_set's entry for a unit."""
    return {"path": f"{UNITS}/{unit}", "template": template, "variables": variables, "validate": VERIFY}


def job_units(files: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return unit_set's entries for the entries of job_files; a timer starts the service of a schedule."""
    paths = [str(file["path"]) for file in files]
    return [
        {
            "name": Path(path).name,
            # A restart of the target would restart every worker.
            "files": [] if path.endswith(".target") else [path],
            "triggered": path.removesuffix(".service") + ".timer" in paths,
        }
        for path in paths
    ]


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            function.__name__: function
            for function in (
                release_metadata,
                in_version_range,
                version_of_release,
                release_of_link,
                failure_message,
                load_credentials,
                unit_words,
                shell_words,
                is_command,
                worker_files,
                state_entries,
                state_mounts,
                check_requests,
                check_faults,
                job_files,
                job_units,
            )
        }
