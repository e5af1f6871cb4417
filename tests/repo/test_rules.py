"""Every alert has a runbook and test cases that fire and stay silent; promtool runs them on lab hosts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.lab import ROOT
from tests.rules import NEVER_SILENT, alerts, cases, rule_files

FILES = rule_files()
ALERTS = [(name, alert) for name, content in FILES.items() for alert in alerts(content)]
each_alert = pytest.mark.parametrize(("name", "alert"), ALERTS, ids=[alert for _, alert in ALERTS])


def rule(name: str, alert: str) -> dict[str, Any]:
    """Return an alert's rule."""
    return alerts(FILES[name])[alert]


def test_alert_names_are_unique() -> None:
    names = [alert for _, alert in ALERTS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("name", FILES)
def test_cases_belong_to_existing_alerts(name: str) -> None:
    assert cases(name).keys() <= alerts(FILES[name]).keys()


@each_alert
def test_alert_has_a_firing_and_a_silent_case(name: str, alert: str) -> None:
    case = cases(name)[alert]
    assert "fires" in case
    assert ("silent" in case) != (alert in NEVER_SILENT)


@each_alert
def test_alert_has_a_severity_and_a_summary(name: str, alert: str) -> None:
    assert rule(name, alert)["labels"]["severity"] in {"critical", "warning", "info", "none"}
    assert rule(name, alert)["annotations"].keys() == {"summary", "runbook"}
    assert rule(name, alert)["annotations"]["summary"].endswith(".")


@each_alert
def test_alert_links_to_its_section_of_a_runbook(name: str, alert: str) -> None:
    path, _, anchor = rule(name, alert)["annotations"]["runbook"].partition("#")
    sections = re.split(r"^## (.+)$", (ROOT / path).read_text(), flags=re.MULTILINE)[1:]
    text = {title.lower(): body.strip() for title, body in zip(sections[::2], sections[1::2], strict=True)}
    assert anchor == alert.lower()
    assert len(text[anchor]) > 60


@pytest.mark.parametrize("path", sorted((ROOT / "docs/runbooks").glob("*.md")), ids=lambda path: path.name)
def test_runbooks_describe_existing_alerts(path: Any) -> None:
    assert set(re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)) <= {alert for _, alert in ALERTS}
