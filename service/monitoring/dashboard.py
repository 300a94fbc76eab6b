"""Makes Grafana's JSON of ``dashboard.toml``: ``python -m service.monitoring.dashboard``.

A panel is some five lines there and fifty in the JSON, which is committed beside it: Grafana reads
nothing else. Panels of one type look alike, and a grid places them.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DASHBOARD = HERE / "grafana" / "dashboards" / "digits.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}  # as in grafana/provisioning/datasources
JOB = 'job="digits"'
AT = f'{JOB},instance=~"$instance"'
SELECTORS = {"{job}": JOB, "{at}": AT, "{of}": f'{AT},model=~"$model"'}

COLUMNS, WIDTH, HEIGHT = 24, 8, 8
OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {"tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {"colorMode": "background", "graphMode": "none", "reduceOptions": {"calcs": ["last"]}},
    "heatmap": {"calculate": False, "color": {"mode": "scheme", "scheme": "Viridis"}},
    "table": {"showHeader": True},
}
FORMATS = {"heatmap": "heatmap", "table": "table"}
AT_ONCE = ("stat", "table")
COLUMNS_HIDDEN = dict.fromkeys(("Time", "Value", "__name__", "job"), True)


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in tomllib.loads((HERE / "dashboard.toml").read_text())["row"]:
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        panels.append({"type": "row", "title": row["title"], "collapsed": False, "gridPos": place})
        x, y, height = 0, y + 1, row.get("height", HEIGHT)
        for spec in row["panel"]:
            width = spec.get("width", WIDTH)
            if x + width > COLUMNS:
                x, y = 0, y + height
            panels.append(_panel(spec) | {"gridPos": {"x": x, "y": y, "w": width, "h": height}})
            x += width
        y += height
    return {
        "uid": "digits",
        "title": "Proven digits",
        "tags": ["digits"],
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                _variable("model", f"label_values(inference_model_info{{{JOB}}}, model)"),
                _variable("instance", f"label_values(up{{{JOB}}}, instance)"),
            ]
        },
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _panel(spec: dict[str, Any]) -> dict[str, Any]:
    kind = spec.get("type", "timeseries")
    steps = [
        {"value": None if bound == float("-inf") else bound, "color": color}
        for color, bound in spec.get("colors", {"green": float("-inf")}).items()
    ]
    defaults = {"min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    panel = {
        "type": kind,
        "title": spec["title"],
        "description": spec["description"],
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": spec.get("unit", "short"), **defaults}},
        "options": OPTIONS[kind],
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": _expanded(query),
                "legendFormat": legend or "__auto",
                "format": FORMATS.get(kind, "time_series"),
                "instant": kind in AT_ONCE,
                "range": kind not in AT_ONCE,
            }
            for number, (legend, query) in enumerate(spec["queries"].items())
        ],
    }
    if kind == "table":
        hidden = {"id": "organize", "options": {"excludeByName": COLUMNS_HIDDEN}}
        panel["transformations"] = [hidden]
    if kind == "heatmap":
        panel["options"] = OPTIONS[kind] | {"yAxis": {"unit": spec.get("unit", "short")}}
    return panel


def _expanded(query: str) -> str:
    for short, labels in SELECTORS.items():
        query = query.replace(short, f"{{{labels}}}")
        query = query.replace(f"{short[:-1]},", f"{{{labels},")
    return query


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # whenever the time range changes
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def main() -> None:
    """Write it."""
    DASHBOARD.write_text(json.dumps(dashboard(), indent=1) + "\n")


if __name__ == "__main__":
    main()
