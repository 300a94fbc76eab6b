"""The OpenAPI description of our endpoints, laid into BentoML's document at /docs.json."""

from collections.abc import Sequence
from typing import Any

_DESCRIPTION = (
    "Reads handwritten digits. Served models: {models}; each answered its golden samples rightly "
    "on this device before the service became ready. GET /models gives the proof."
)
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_PREDICTION = {
    "type": "object",
    "required": ["label", "probabilities"],
    "properties": {
        "label": {"type": "string", "example": "7"},
        "probabilities": {
            "type": "array",
            "description": "one for each label of GET /models, in its order; their sum is 1",
            "items": {"type": "number", "minimum": 0, "maximum": 1},
        },
    },
}
_ANSWER = {
    "type": "object",
    "required": ["model", "version", "device", "provider", "predictions"],
    "properties": {
        "model": {"type": "string", "example": "cnn"},
        "version": {
            "type": "string",
            "description": "by default the start of the weights' SHA-256",
        },
        "device": {"type": "string", "enum": ["cpu", "cuda"]},
        "provider": {"type": "string", "example": "CPUExecutionProvider"},
        "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}},
    },
}
_PIXELS = {
    "type": "array",
    "minItems": 28,
    "maxItems": 28,
    "items": {
        "type": "array",
        "minItems": 28,
        "maxItems": 28,
        "items": {"type": "integer", "minimum": 0, "maximum": 255},
    },
}


def merged_openapi(base: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """BentoML's document with our paths and schemas in it.

    Args:
        base: BentoML's own document.
        models: The served models' names, for the ``model`` parameter.
    """
    components = dict(base.get("components", {}))
    schemas = {**components.get("schemas", {}), **_schemas(models)}
    version = base.get("info", {}).get("version")
    info = {
        "title": "Digit classifier",
        "version": "dev" if version in (None, "None") else version,  # the Bento's, if in one
        "description": _DESCRIPTION.format(models=", ".join(models)),
    }
    return {
        **base,
        "info": info,
        "components": {**components, "schemas": schemas},
        "paths": {**base.get("paths", {}), **_paths(models)},
    }


def _schemas(models: Sequence[str]) -> dict[str, Any]:
    request = {
        "type": "object",
        "required": ["images"],
        "additionalProperties": False,
        "properties": {
            "images": {
                "description": "one image or many; 0 = ground, 255 = ink",
                "oneOf": [_PIXELS, {"type": "array", "minItems": 1, "items": _PIXELS}],
            },
            "model": {"type": "string", "enum": list(models)},
        },
    }
    return {
        "PredictRequest": request,
        "Prediction": _PREDICTION,
        "PredictAnswer": _ANSWER,
        "Error": _ERROR,
    }


def _paths(models: Sequence[str]) -> dict[str, Any]:
    model = {
        "name": "model",
        "in": "query",
        "required": False,
        "schema": {"type": "string", "enum": list(models)},
    }
    file = {"type": "string", "format": "binary"}
    form: dict[str, Any] = {"type": "object", "required": ["image"], "properties": {"image": file}}
    upload = {"multipart/form-data": form, "image/png": file, "image/jpeg": file}
    return {
        "/predict": {
            "post": _post(
                "Read one image or many, given as pixels",
                [model],
                {"application/json": {"$ref": "#/components/schemas/PredictRequest"}},
            )
        },
        "/predict/image": {
            "post": _post("Read a digit from a PNG or JPEG file of any size", [model], upload, True)
        },
        **_inference_protocol(models),
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics of all workers",
                "operationId": "metrics",
                "tags": ["Observability"],
                "responses": {"200": {"description": "Prometheus' text format"}},
            }
        },
        "/models": {
            "get": {
                "summary": "The served models with their proof",
                "operationId": "list_models",
                "tags": ["Service APIs"],
                "responses": {"200": {"description": "one card a model"}},
            }
        },
    }


def _inference_protocol(models: Sequence[str]) -> dict[str, Any]:
    """The Open Inference Protocol's paths, with an example of each form."""
    model = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": list(models)},
    }
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "bytes of JSON before the blobs; 0: the body is the only input's values",
        "schema": {"type": "integer", "minimum": 0},
    }
    example = {"name": "images", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0] * 784}
    infer = _post(
        "Infer by the Open Inference Protocol: JSON, or JSON and raw tensors, or raw tensors alone",
        [model, length],
        {
            "application/json": {"type": "object", "example": {"inputs": [example]}},
            "application/octet-stream": {"type": "string", "format": "binary"},
        },
    )
    infer["responses"]["200"] = {"description": "model_name, model_version, outputs; blobs behind"}

    def get(summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
        responses = {"200": {"description": "as the protocol says"}}
        tags = ["Open Inference Protocol"]
        return {
            "get": {
                "summary": summary,
                "tags": tags,
                "parameters": parameters,
                "responses": responses,
            }
        }

    return {
        "/v2": get("The server's name and extensions", []),
        "/v2/health/live": get("Is the process up?", []),
        "/v2/health/ready": get("Are the models proven and served?", []),
        "/v2/models/{model}": get("The model's versions and tensors", [model]),
        "/v2/models/{model}/ready": get("Is the model served?", [model]),
        "/v2/models/{model}/infer": {"post": infer},
    }


def _post(
    summary: str,
    parameters: list[dict[str, Any]],
    content: dict[str, dict[str, Any]],
    uploads: bool = False,
) -> dict[str, Any]:
    refusals = {
        "400": "the body is not what the endpoint reads",
        "404": "no such model",
        "413": "too many bytes, pixels or images",
        "429": "the queue is full; see Retry-After",
    }
    return {
        "summary": summary,
        "tags": ["Service APIs"],
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {media: {"schema": schema} for media, schema in content.items()},
        },
        "responses": {
            "200": _response("the answer", "PredictAnswer"),
            **{status: _response(why, "Error") for status, why in refusals.items()},
            **({"415": _response("a content type that is not read", "Error")} if uploads else {}),
        },
    }


def _response(description: str, schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": description, "content": {"application/json": {"schema": reference}}}
