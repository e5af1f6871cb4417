"""Test cases of the alerts for promtool: when each alert fires, with its labels and summary, and when not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "roles/prometheus/files/rules"
CASES = Path(__file__).parent
# Alerts that always fire.
NEVER_SILENT = {"Watchdog"}


def rule_files() -> dict[str, Any]:
    """Return the rule files by name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml"))}


def alerts(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the alerts of a rule file by name."""
    return {rule["alert"]: rule for group in content["groups"] for rule in group["rules"] if "alert" in rule}


def cases(name: str) -> dict[str, dict[str, Any]]:
    """Return the cases of a rule file's alerts."""
    path = CASES / f"{name}.yml"
    content: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text()) if path.exists() else {}
    return content


def every_case(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (alert, case) with the further cases of an alert, below `more`, which take over its times."""
    for alert, case in cases(name).items():
        yield alert, case
        times = {key: case[key] for key in ("at", "interval") if key in case}
        yield from ((alert, times | further) for further in case.get("more", ()))


def promtool_tests(name: str, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the promtool test files of a rule file by interval; cases that span days use a longer one."""
    files: dict[str, dict[str, Any]] = {}
    for alert, case in every_case(name):
        rule, interval = alerts(content)[alert], case.get("interval", "1m")
        expected = {
            "exp_labels": {**case["labels"], **rule["labels"]},
            "exp_annotations": {"summary": case["summary"], "runbook": rule["annotations"]["runbook"]},
        }
        empty = {"rule_files": ["recording.yml", f"{name}.yml"], "evaluation_interval": interval, "tests": []}
        for kind, expected_alerts in (("fires", [expected]), ("silent", [])):
            if kind not in case:
                continue
            check = {"alertname": alert, "eval_time": case.get("at", "5m"), "exp_alerts": expected_alerts}
            series = [{"series": key, "values": str(values)} for key, values in case[kind].items()]
            test = {"interval": interval, "input_series": series, "alert_rule_test": [check]}
            files.setdefault(interval, empty)["tests"].append({"name": f"{alert} {kind}", **test})
    return files


def write(directory: Path, expression: str | None = None) -> None:
    """Write rules and tests to a directory; `expression` replaces the expressions of all alerts."""
    for name, content in rule_files().items():
        written = content
        if expression:
            mutants = [
                {**{key: value for key, value in rule.items() if key != "for"}, "expr": expression}
                for rule in alerts(content).values()
            ]
            written = {"groups": [{"name": name, "rules": mutants}]}
        (directory / f"{name}.yml").write_text(yaml.safe_dump(written))
        for interval, test in promtool_tests(name, content).items():
            (directory / f"{name}.{interval}.test.yml").write_text(yaml.safe_dump(test, width=1000))
