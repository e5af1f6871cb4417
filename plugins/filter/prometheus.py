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


def scrape_jobs(jobs: Iterable[Group]) -> list[dict[str, Any]]:
    """Return jobs as Prometheus takes them: with one TLS server name each, and the labels of their targets.

    A job whose targets have several server names becomes several, which keep its label.
    """
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        for target in job["targets"]:
            server_name = target.get("server_name", "")
            name = f"{job['name']}/{server_name}" if server_name else job["name"]
            part = found.setdefault(name, {**job, "name": name, "server_name": server_name, "targets": []})
            part["targets"].append({**target, "labels": target_labels(job["name"], target)})
    return list(found.values())


def target_labels(job: str, target: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a target: those that it is stored with, and those that say how it is scraped."""
    labels = {"job": job, **target.get("labels", {}), "instance": target["host"]}
    labels["__scheme__"] = target.get("scheme", "http")
    labels |= {"__metrics_path__": target["path"]} if "path" in target else {}
    return labels | {f"__param_{name}": value for name, value in target.get("params", {}).items()}


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {"alert_rules": alert_rules, "scrape_jobs": scrape_jobs}
