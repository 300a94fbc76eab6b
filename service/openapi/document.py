"""Completes the OpenAPI document for the served models and the settings.

Everything else is in ``openapi.yaml``. An example of a body belongs to the examples of parameters
that have the same name.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from export.bundle.manifest import Manifest
from service.openapi.examples import request_examples
from service.openapi.schemas import DIGITS, TENSORS, Schema, component_schemas, unique
from service.settings import Settings

_FILE = Path(__file__).with_name("openapi.yaml")
_TEMPLATE: Schema = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
# Each document starts as a copy; the JSON round trip separates objects that YAML aliases share.
_TEMPLATE_JSON = json.dumps(_TEMPLATE)
_IDENTITY_HEADERS = _TEMPLATE["components"]["headers"].keys() - {"x-request-id"}


def openapi_document(
    base: dict[str, Any], models: Sequence[Manifest], settings: Settings
) -> dict[str, Any]:
    """Return BentoML's OpenAPI document, extended by the endpoints of this service.

    Args:
        base: BentoML's document; its components are omitted, because only its tasks use them.
        models: The manifests of the served models, each with its task.
        settings: Limits, the API key, and whether answers have identity headers.
    """
    document: Schema = json.loads(_TEMPLATE_JSON)
    info, components = document["info"], document["components"]
    names = [model.name for model in models]
    version = base.get("info", {}).get("version")
    info["version"] = "dev" if version in (None, "None") else version  # set in a Bento only
    info["description"] = info["description"].replace("{models}", ", ".join(names))
    components["headers"]["x-model"]["schema"]["enum"] = unique(names)
    paths = _served_paths(document["paths"], models, settings)
    components["schemas"] = component_schemas(
        re.findall(r"#/components/schemas/(\w+)", json.dumps([paths, components])),
        models,
        settings.max_request_samples,
    )
    return {
        **base,
        "openapi": document["openapi"],
        "info": info,
        "tags": [*base.get("tags", []), *document["tags"]],
        "components": components,
        "paths": {**base.get("paths", {}), **paths},
    }


def _served_paths(paths: Schema, models: Sequence[Manifest], settings: Settings) -> Schema:
    """Return the paths that at least one model has, each completed for its models."""
    digits = [model for model in models if model.task == DIGITS]
    models_by_path = {
        "/predict": digits,
        "/predict/image": digits,
        "/models/{model}/features": [model for model in models if model.features],
    }
    served = {path: item for path, item in paths.items() if models_by_path.get(path, models)}
    if all(model.task == TENSORS for model in models):
        named_tensors = served["/models/{model}/predict"]["post"]
        content = named_tensors["requestBody"]["content"]
        named_tensors["requestBody"]["content"] = {"application/json": content["application/json"]}
        del named_tensors["description"]  # how to send an image
    for path, item in served.items():
        for operation in item.values():
            _add_models(operation, models_by_path.get(path, models))
            _leave_out_unused(operation, settings)
    return served


def _add_models(operation: Schema, models: Sequence[Manifest]) -> None:
    """Add names and versions of the models that have this operation, and the examples."""
    examples = [
        example for model in models for example in request_examples(operation["operationId"], model)
    ]
    for parameter in operation["parameters"]:
        name = parameter["name"]
        if name == "model":
            parameter["schema"]["enum"] = unique(model.name for model in models)
        if name == "version":
            parameter["schema"]["enum"] = unique(model.version for model in models)
        if "examples" in parameter:
            parameter["examples"] = {
                example.name: {"value": example.parameters[name]}
                for example in examples
                if name in example.parameters
            }
    for media_type, body in operation.get("requestBody", {"content": {}})["content"].items():
        body["examples"] = {
            example.name: {"summary": example.summary, "value": example.body}
            for example in examples
            if example.media_type == media_type
        }


def _leave_out_unused(operation: Schema, settings: Settings) -> None:
    """Remove the API key if none is set, and the identity headers if answers have none."""
    responses = operation["responses"]
    if settings.api_key is None:
        operation.pop("security", None)
        responses.pop("401", None)
    if not settings.answer_headers:
        headers = responses["200"]["headers"]
        for name in _IDENTITY_HEADERS & headers.keys():
            del headers[name]
