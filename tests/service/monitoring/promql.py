"""The queries of the rules and the dashboard, and the metrics in them."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from service.settings import ROOT

MONITORING = ROOT / "service" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "digits.json"
RULES = MONITORING / "rules"

_WORDS = {"and", "or", "unless", "by", "on", "bool", "group_left", "group_right", "ignoring"}
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*\b(?!\s*\()")


def metric_names(query: str) -> set[str]:
    """The metrics in a query."""
    bare = re.sub(r'"[^"]*"', '""', query)
    bare = _GROUPING.sub("", re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare))
    return set(_NAME.findall(bare)) - _WORDS


@cache
def rules() -> list[dict[str, Any]]:
    """All recording and alerting rules."""
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> dict[str, str]:
    """The recording rules' queries by name."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, without the headings."""
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def dashboard_queries() -> list[str]:
    """The dashboard's queries."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


@cache
def alerts_in_tests(path: Path) -> tuple[set[str], set[str]]:
    """The alerts that promtool's tests expect to fire, and those that they expect not to."""
    firing, silent = set[str](), set[str]()
    for test in yaml.safe_load(path.read_text())["tests"]:
        for case in test.get("alert_rule_test", []):
            (firing if case.get("exp_alerts") else silent).add(case["alertname"])
        for case in test.get("promql_expr_test", []):
            for name in _named(case["expr"]):
                (firing if case.get("exp_samples") else silent).add(name)
    return firing, silent


def _named(query: str) -> list[str]:
    asked = re.search(r'alertname=(~?)"([^"]+)"', query)
    if asked is None:
        return []
    pattern = asked[2] if asked[1] else re.escape(asked[2])
    return [name for name in alerts() if re.fullmatch(pattern, name)]
