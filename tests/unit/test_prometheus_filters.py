"""What the role prometheus makes of rule files and an operator's changes to them."""

from __future__ import annotations

from typing import Any

from plugins.filter.files import file_entries
from plugins.filter.prometheus import alert_rules

GROUPS: list[dict[str, Any]] = [
    {
        "name": "service",
        "interval": "1m",
        "rules": [
            {"record": "job:up", "expr": "up"},
            {
                "alert": "Down",
                "expr": "up == 0",
                "for": "1m",
                "labels": {"severity": "critical", "team": "x"},
            },
            {"alert": "Slow", "expr": "seconds > 1"},
        ],
    }
]


def test_leaves_rules_alone_by_default() -> None:
    assert alert_rules(GROUPS, [], {}) == GROUPS


def test_leaves_disabled_alerts_out() -> None:
    (group,) = alert_rules(GROUPS, ["Down"], {})
    assert [rule.get("alert") for rule in group["rules"]] == [None, "Slow"]
    assert group["interval"] == "1m"


def test_merges_overrides_into_an_alert() -> None:
    (group,) = alert_rules(GROUPS, [], {"Down": {"for": "5m", "labels": {"severity": "warning"}}})
    assert group["rules"][1] == {
        "alert": "Down",
        "expr": "up == 0",
        "for": "5m",
        "labels": {"severity": "warning", "team": "x"},
    }
    (group,) = alert_rules(GROUPS, [], {"Slow": {"labels": {"severity": "info"}}})
    assert group["rules"][2]["labels"] == {"severity": "info"}
    assert GROUPS[0]["rules"][1]["for"] == "1m"


def test_puts_files_into_a_directory_under_their_names() -> None:
    assert file_entries(["/x/a.json"], "/etc/d") == [{"path": "/etc/d/a.json", "file": "/x/a.json"}]
    assert file_entries(["/x/a.yml"], "/etc/d", template="t.j2", validate="check %s") == [
        {
            "path": "/etc/d/a.yml",
            "template": "t.j2",
            "variables": {"source": "/x/a.yml"},
            "validate": "check %s",
        }
    ]
