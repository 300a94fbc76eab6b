"""The PrometheusRule and the ServiceMonitor agree with service/monitoring."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.settings import ROOT
from tests.service.kubernetes.render import KUBERNETES, OVERLAYS, find, render_overlay
from tests.service.kubernetes.rules import MANIFEST, make_prometheus_rule

ADAPTER = yaml.safe_load(
    (KUBERNETES / "components" / "prometheus-adapter" / "adapter-values.yaml").read_text()
)["rules"]["custom"]
METRICS = (ROOT / "docs" / "monitoring.md").read_text()


def test_the_prometheus_rule_holds_the_rules_of_the_monitoring_folder() -> None:
    """The committed manifest is what the command writes."""
    written = yaml.safe_load(MANIFEST.read_text())
    assert written == make_prometheus_rule(), "run python -m tests.service.kubernetes.rules"
    alerts = [rule for group in written["spec"]["groups"] for rule in group["rules"]]
    assert sum("alert" in rule for rule in alerts) == 16


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_operator_gives_every_series_the_job_of_the_rules(overlay: str) -> None:
    """The ServiceMonitor selects one Service, with the job from its label and its named port."""
    objects = render_overlay(overlay)
    monitor = find(objects, "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    services = [one for one in objects if one["kind"] == "Service"]
    (service,) = (one for one in services if wanted <= one["metadata"]["labels"].items())
    jobs = set(re.findall(r'job="([^"]+)"', MANIFEST.read_text()))
    assert jobs == {service["metadata"]["labels"][monitor["jobLabel"]]}
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= ports


def test_every_metric_that_scales_the_service_is_one_that_it_exposes() -> None:
    """The adapter's rules and KEDA's query use metrics from docs/monitoring.md."""
    names = [re.split("[{]", rule["seriesQuery"])[0] for rule in ADAPTER]
    trigger = find(render_overlay("keda"), "ScaledObject")["spec"]["triggers"][0]
    names += re.findall(r"inference_\w+", trigger["metadata"]["query"])
    for name in names:
        assert f"| `{name.removesuffix('_sum')}` |" in METRICS, name


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "kserve", "cpu-init-container"])
def test_the_adapter_offers_every_metric_of_the_autoscaler(overlay: str) -> None:
    """Each Pods metric of the autoscaler is the new name of a series in the adapter's rules."""
    offered = {rule["name"]["as"] for rule in ADAPTER}
    metrics = find(render_overlay(overlay), "HorizontalPodAutoscaler")["spec"]["metrics"]
    wanted = {metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"}
    assert wanted
    assert wanted <= offered


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_reads_the_queries(tmp_path: Path) -> None:
    """The adapter's filled-in queries, KEDA's query and the rules are valid PromQL."""
    queries = [_fill_in(rule) for rule in ADAPTER]
    trigger = find(render_overlay("keda"), "ScaledObject")["spec"]["triggers"][0]
    queries.append(trigger["metadata"]["query"])
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    groups = [{"name": "queries", "rules": rules}, *make_prometheus_rule()["spec"]["groups"]]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": groups}))
    ran = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr + ran.stdout


def _fill_in(rule: dict[str, str]) -> str:
    """Return the query as the adapter sends it for the pods of one namespace."""
    series = re.split("[{]", rule["seriesQuery"])[0]
    labels = 'namespace="proven-digits",pod=~"digits-.*"'
    query = rule["metricsQuery"].replace("<<.Series>>", series)
    return query.replace("<<.LabelMatchers>>", labels).replace("<<.GroupBy>>", "pod")
