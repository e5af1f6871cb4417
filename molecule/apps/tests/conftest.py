"""The host of the four applications, and a browser that knows their names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apps import APPS
from tests.apps.host import Apps
from tests.browser import Browser, browser
from tests.conftest import measured, pytest_terminal_summary

# FastAPI's page of the documentation loads the real one.
SWAGGER_UI = """
function SwaggerUIBundle() { document.title = "drawn" }
SwaggerUIBundle.presets = {}
"""

__all__ = ["measured", "pytest_terminal_summary"]


@pytest.fixture(scope="session")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Apps:
    """Return the host with its services."""
    return Apps(tmp_path_factory.mktemp("apps"))


@pytest.fixture(scope="session")
def tab(apps: Apps, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a browser tab."""
    names = {f"{service}.test": apps.address for service in APPS}
    with browser(tmp_path_factory.mktemp("browser"), names, SWAGGER_UI) as tab:
        yield tab
