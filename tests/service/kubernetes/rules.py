"""Writes the PrometheusRule of ``service/kubernetes`` from the rules in ``service/monitoring``.

python -m tests.service.kubernetes.rules
"""

from pathlib import Path
from typing import Any

import yaml

from service.settings import ROOT

MANIFEST = ROOT / "service/kubernetes/components/monitoring/prometheusrule.yaml"
RULES = ROOT / "service/monitoring/rules"
HEAD = "# Written from service/monitoring/rules by `python -m tests.service.kubernetes.rules`.\n"


def make_prometheus_rule(folder: Path = RULES) -> dict[str, Any]:
    """Return the PrometheusRule that holds every group of the folder's rule files."""
    groups: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.yml")):
        groups += yaml.safe_load(file.read_text())["groups"]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "digits",
            "namespace": "proven-digits",
            "labels": {"app.kubernetes.io/name": "digits"},
        },
        "spec": {"groups": groups},
    }


def main() -> None:
    """Write the manifest."""
    text = yaml.safe_dump(make_prometheus_rule(), sort_keys=False, width=120)
    MANIFEST.write_text(HEAD + text)


if __name__ == "__main__":
    main()
