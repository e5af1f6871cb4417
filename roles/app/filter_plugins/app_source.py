"""What an app says about itself in its source tree or wheel, for preflight."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

SETTINGS = "app/settings.txt"


def app_about(source: str) -> dict[str, Any]:
    """Return the Python versions that an app wants, and the settings it knows, as far as it says so."""
    path = Path(source)
    if path.is_dir():
        texts = [path / name for name in ("pyproject.toml", SETTINGS)]
        about, settings = (text.read_text() if text.is_file() else "" for text in texts)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
            metadata = [name for name in names if name.endswith(".dist-info/METADATA")]
            about, settings = (
                "".join(wheel.read(name).decode() for name in names if name in wanted)
                for wanted in (metadata, [SETTINGS])
            )
    else:
        about = settings = ""
    wanted = re.search(r"^requires-python(?:: | *= *[\"'])([^\"'\n]+)", about, re.MULTILINE | re.IGNORECASE)
    return {"python": wanted[1] if wanted else "", "settings": settings.split()}


def app_runs_on(python: str, wanted: str) -> bool:
    """Tell whether a Python version is one of those that are wanted."""
    return SpecifierSet(wanted).contains(python, prereleases=True)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return them by name."""
        return {"app_about": app_about, "app_runs_on": app_runs_on}
