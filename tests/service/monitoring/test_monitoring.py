"""Rules, dashboard and documentation match the exposed metrics, and promtool accepts them."""

import re
import shutil
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from loadtest.server import running_service
from service.protocol.errors import ErrorKind
from service.rollout.status import wait_for
from service.settings import ROOT
from service.versions.state import RolloutFolder
from tests.service.monitoring.promql import (
    MONITORING,
    RULES,
    alerts,
    alerts_in_tests,
    dashboard_queries,
    metric_names,
    panels,
    recorded,
    rules,
)
from tests.service.rollout.made_versions import make_digits_rollout

DOCUMENT = (ROOT / "docs" / "monitoring.md").read_text()
TESTS = RULES / "tests" / "alerts.yml"
# Metrics that Prometheus itself adds for targets and alerts.
PROMETHEUS_OWN = {"up", "scrape_duration_seconds", "ALERTS"}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian and Ubuntu: apt-get install prometheus)",
)


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Metric]]:
    """The metrics, without old names, of a real service whose CNN has versions."""
    folder = tmp_path_factory.mktemp("monitoring")
    bundles = make_digits_rollout(folder)
    settings = {"INFERENCE_BUNDLES": str(bundles), "INFERENCE_DEVICE": "cpu"}
    with running_service(folder / "service.log", settings=settings) as url:
        outcome, why = wait_for(RolloutFolder(bundles / "cnn"), 2, 40)
        assert outcome == "live", why
        yield _read_exposed(url)


def _read_exposed(url: str) -> dict[str, Metric]:
    text = httpx.get(f"{url}/metrics").text
    return {
        metric.name: metric
        for metric in text_string_to_metric_families(text)
        if not metric.documentation.startswith("Old name of ")
    }


def test_every_metric_is_exposed_under_its_old_name_too(service_url: str) -> None:
    """Until the next release each metric has a copy whose name begins with digits_."""
    text = httpx.get(service_url + "/metrics").text
    families = {metric.name: metric for metric in text_string_to_metric_families(text)}
    copies = {
        metric.documentation.removeprefix("Old name of ").removesuffix("."): metric
        for metric in families.values()
        if metric.documentation.startswith("Old name of ")
    }
    assert {name for name in families if name.startswith("inference_")} == set(copies)
    assert {"digits_requests", "digits_images", "digits_queued_images"} <= set(families)
    for name, copy in copies.items():
        assert copy.name.startswith("digits_")
        assert copy.type == families[name].type
        values, copied = (
            [
                (sample.name.removeprefix(of.name), sample.labels, sample.value)
                for sample in of.samples
            ]
            for of in (families[name], copy)
        )
        assert copied == values, name


def _series(exposed: dict[str, Metric]) -> Iterator[str]:
    for metric in exposed.values():
        yield from (sample.name for sample in metric.samples)


def test_every_metric_that_is_asked_for_is_exposed_or_recorded(exposed: dict[str, Metric]) -> None:
    """Every metric in the rules' and dashboard's queries exists."""
    known = {*_series(exposed), *recorded(), *PROMETHEUS_OWN}
    for query in [*dashboard_queries(), *(rule["expr"] for rule in rules())]:
        names = metric_names(query)
        assert names, query
        assert names <= known, f"{sorted(names - known)} in {query}"


def test_every_metric_that_is_exposed_is_looked_at(exposed: dict[str, Metric]) -> None:
    """Every metric of the service is used in some query."""
    queries = [*dashboard_queries(), *recorded().values()]
    asked = {name for query in queries for name in metric_names(query)}
    for metric in exposed.values():
        series = {sample.name for sample in metric.samples}
        assert series & asked or not metric.name.startswith("inference_"), metric.name


def test_every_label_that_is_asked_for_is_there(exposed: dict[str, Metric]) -> None:
    """Labels in queries are the metrics' labels, and values of kind are error kinds."""
    labels = {"le", "instance", "job", "alertname", "alertstate"}
    labels |= {
        label for metric in exposed.values() for sample in metric.samples for label in sample.labels
    }
    kinds = {kind.label for kind in ErrorKind}
    for query in [*dashboard_queries(), *(rule["expr"] for rule in rules())]:
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
            assert set(group.split(", ")) <= labels, query
        for selector in re.findall(r"\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)=", selector)) <= labels, query
        for asked in re.findall(r'kind=~"([^"]*)"', query):
            assert set(asked.split("|")) <= kinds, query


def test_every_metric_is_documented_as_it_is(exposed: dict[str, Metric]) -> None:
    """The table of docs/monitoring.md lists exactly these names, types and labels."""
    rows = re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|([^|]*)\|", DOCUMENT, re.M)
    documented = {(name, kind, labels.strip()) for name, kind, labels in rows}
    actual = set()
    for metric in exposed.values():
        labels = {name for sample in metric.samples for name in sample.labels} - {"le"}
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        actual.add((name, metric.type, ", ".join(sorted(labels))))
    assert actual == documented


def test_names_hold_to_the_conventions(exposed: dict[str, Metric]) -> None:
    """Names end in spelt-out base units, counters in total, and every metric has a description."""
    for metric in exposed.values():
        assert metric.documentation, metric.name
        assert not re.search(r"_(ms|us|millis|kb|mb|percent|pct)(_|$)", metric.name)
        if metric.type == "counter":
            assert all(sample.name.endswith("_total") for sample in metric.samples)


def test_every_kind_of_error_is_documented() -> None:
    """The table lists every kind of error with its status."""
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", DOCUMENT, re.M)
    assert rows == [(kind.label, str(kind.status)) for kind in sorted(ErrorKind, key=_by_status)]


def _by_status(kind: ErrorKind) -> int:
    return kind.status


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_to_do_and_is_tested_both_ways(name: str) -> None:
    """An alert has severity, texts and a runbook section, and tests of firing and not firing."""
    alert = alerts()[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert {"summary", "description", "runbook"} == set(alert["annotations"])
    assert alert["annotations"]["runbook"] == f"docs/monitoring.md#{name.lower()}"
    assert f"\n### {name}\n*{alert['labels']['severity']}.* " in DOCUMENT
    firing, silent = alerts_in_tests(TESTS)
    assert name in firing
    assert name in silent


def test_every_panel_says_what_it_shows() -> None:
    """Panels have a unique title, a description, a unit and a query, and do not overlap."""
    titles, places = set[str](), set[tuple[int, int]]()
    for panel in panels():
        assert panel["title"] not in titles
        titles.add(panel["title"])
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & places, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= cells


def test_a_query_is_taken_apart_rightly() -> None:
    """Only names of metrics are found, not functions, labels, keywords or numbers."""
    query = 'sum by (model, le) (rate(a_bucket{kind=~"b|c"}[5m])) > on (job) group_left () 3 * d:e'
    assert metric_names(query) == {"a_bucket", "d:e"}


@needs_promtool
def test_promtool_accepts_configuration_and_rules() -> None:
    """Syntax, names and templates are accepted by promtool."""
    for command in (
        ["check", "config", str(MONITORING / "prometheus.yml")],
        ["check", "rules", *map(str, sorted(RULES.glob("*.yml")))],
    ):
        _promtool(*command)


@needs_promtool
def test_every_alert_fires_where_it_must_and_nowhere_else() -> None:
    """The unit tests of the rules pass in promtool."""
    _promtool("test", "rules", str(TESTS))


def _promtool(*arguments: str) -> None:
    ran = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "FAILED" not in ran.stdout
