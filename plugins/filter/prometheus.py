"""Filters of the role prometheus."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

Group = Mapping[str, Any]


def alert_rules(
    groups: Iterable[Group], disabled: Collection[str], overrides: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return groups of rules without the disabled alerts, and with the overrides by alert merged in."""
    return [
        {
            **group,
            "rules": [
                merged(rule, overrides.get(rule.get("alert", ""), {}))
                for rule in group["rules"]
                if rule.get("alert") not in disabled
            ],
        }
        for group in groups
    ]


def merged(rule: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rule with an override's keys; labels and annotations are merged."""
    return dict(rule) | {
        key: {**rule[key], **value} if isinstance(value, Mapping) and key in rule else value
        for key, value in override.items()
    }


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {"alert_rules": alert_rules}
