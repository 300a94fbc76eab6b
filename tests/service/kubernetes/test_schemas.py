"""Every object would be accepted by Kubernetes or by the owner of the custom resource."""

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from tests.service.kubernetes.crds_agree import find_differences
from tests.service.kubernetes.render import OVERLAYS, Object, find, render_overlay
from tests.service.kubernetes.schemas import CUSTOM, KUBERNETES_VERSIONS, check, load_schema


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    """Each object of each overlay matches its schema, which refuses unknown fields."""
    for content in render_overlay(overlay):
        check(content, version)


@pytest.mark.parametrize("kind", CUSTOM)
def test_a_custom_schema_refuses_unknown_fields_everywhere(kind: str) -> None:
    """Every object in the schema lists its fields, or gives one type for all of them."""

    def check_closed(schema: Any, path: str) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and path != ".properties.metadata":
                free_form = kind == "InferenceService" and path.endswith(".metadata")
                assert "additionalProperties" in schema or free_form, path
            for key, value in schema.items():
                check_closed(value, f"{path}.{key}")

    check_closed(load_schema(kind), "")


def _misspell_probe(objects: list[Object]) -> Object:
    deployment = find(objects, "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    return deployment


def _misspell_metric(objects: list[Object]) -> Object:
    autoscaler = find(objects, "HorizontalPodAutoscaler")
    autoscaler["spec"]["metrics"][0]["pods"]["target"]["averagevalue"] = "64"
    return autoscaler


def _misspell_scrape(objects: list[Object]) -> Object:
    monitor = find(objects, "ServiceMonitor")
    monitor["spec"]["endpoints"][0]["scrapetimeout"] = "10s"
    return monitor


def _break_duration(objects: list[Object]) -> Object:
    rule = find(objects, "PrometheusRule")
    rule["spec"]["groups"][0]["rules"][0]["for"] = "1 minute"
    return rule


def _number_as_threshold(objects: list[Object]) -> Object:
    scaled = find(objects, "ScaledObject")
    scaled["spec"]["triggers"][0]["metadata"]["threshold"] = 64
    return scaled


def _misspell_predictor(objects: list[Object]) -> Object:
    inference = find(objects, "InferenceService")
    inference["spec"]["predictor"]["minReplica"] = 2
    return inference


def _misspell_label(objects: list[Object]) -> Object:
    monitor = find(objects, "ServiceMonitor")
    monitor["metadata"]["label"] = {"a": "b"}
    return monitor


@pytest.mark.parametrize(
    ("overlay", "fault"),
    [
        ("cpu", _misspell_probe),
        ("cpu", _misspell_metric),
        ("cpu", _misspell_scrape),
        ("cpu", _misspell_label),
        ("cpu", _break_duration),
        ("keda", _number_as_threshold),
        ("kserve", _misspell_predictor),
    ],
)
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_a_planted_fault_is_refused(
    overlay: str, fault: Callable[[list[Object]], Object], version: str
) -> None:
    """Each kind of schema detects a misspelt field, a wrong type and a wrong duration."""
    with pytest.raises(jsonschema.ValidationError):
        check(fault(render_overlay(overlay)), version)


def test_a_schema_that_departs_from_its_definition_is_found() -> None:
    """A field that the full definition lacks, and one of another type, are reported."""
    full = {"properties": {"spec": {"type": "object", "properties": {"path": {"type": "integer"}}}}}
    reduced = {
        "properties": {
            "kind": {"const": "Any"},
            "spec": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "port": {"type": "string"}},
            },
        }
    }
    assert list(find_differences(reduced, full)) == [
        "spec.path: type string, in the definition integer",
        "spec.port: not in the definition",
    ]
