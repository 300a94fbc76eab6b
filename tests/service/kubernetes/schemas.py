"""Checks objects against the schemas of Kubernetes and of the custom resources."""

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

CRDS = Path(__file__).parent / "crds"
CUSTOM = ("ServiceMonitor", "PrometheusRule", "ScaledObject", "InferenceService")
KUBERNETES_VERSIONS = ("1.35", "1.37")
# KServe's own fields of an InferenceService's predictor; the others are a pod's.
_PREDICTOR = ("minReplicas", "maxReplicas", "labels", "deploymentStrategy")


def load_schema(kind: str) -> dict[str, Any]:
    """Return the JSON schema of a custom resource, reduced to the fields in the manifests."""
    schema: dict[str, Any] = yaml.safe_load((CRDS / f"{kind.lower()}.yaml").read_text())
    return schema


def check(content: dict[str, Any], version: str) -> None:
    """Check an object against its schema; unknown fields are refused.

    Args:
        content: Any object of the manifests.
        version: Kubernetes version, such as ``1.35``.

    Raises:
        jsonschema.ValidationError: A field is unknown, missing or of another type.
    """
    if content["kind"] == "InferenceService":
        content = _check_pod_of(content, version)
    if content["kind"] in CUSTOM:
        jsonschema.validate(content, load_schema(content["kind"]))
        kubernetes_validate.validate(_metadata_of(content), version, strict=True)
    else:
        kubernetes_validate.validate(content, version, strict=True)


def _check_pod_of(content: dict[str, Any], version: str) -> dict[str, Any]:
    """Check the predictor's pod as a Pod, and return the InferenceService without it."""
    spec = content["spec"]
    if "predictor" not in spec:
        return content
    predictor = spec["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in _PREDICTOR}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": pod},
        version,
        strict=True,
    )
    own = {key: value for key, value in predictor.items() if key in _PREDICTOR}
    return content | {"spec": spec | {"predictor": own}}


def _metadata_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return a built-in Kubernetes object with the metadata of a custom one."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": content["metadata"]}
