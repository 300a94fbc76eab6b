"""Paths, parameters, responses and headers of the OpenAPI document.

An example of a body belongs with the examples of parameters that have the same name.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from export.manifest import Manifest
from service.openapi.examples import (
    BYTES,
    JSON,
    Example,
    features_examples,
    inference_examples,
    named_tensors_examples,
    predict_examples,
)
from service.openapi.schemas import (
    DIGITS,
    TENSORS,
    DescribedModel,
    Schema,
    component_schemas,
    unique,
)
from service.protocol.query import SHOW, SHOWABLE
from service.protocol.upload import IMAGE_TYPES
from service.settings import Settings

VERSION = "3.1.0"  # its schemas are JSON Schema 2020-12, which pydantic generates
REQUEST_ID, JSON_LENGTH = "x-request-id", "Inference-Header-Content-Length"
OPEN_PATHS = {"/v2/health/live", "/v2/health/ready"}  # described, and open without an API key
_MODEL, _MODEL_VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
_DESCRIPTION = (
    "Recognizes handwritten digits. Served models: {models}. Each model answered its golden "
    "samples correctly on this device before the service became ready; GET /models returns the "
    "evidence.\n\n"
    "The answer of every endpoint has the header x-request-id: the request's own id or a new one. "
    'The body of an error is {{"error": "..."}}. This includes errors that are found before a '
    "request reaches an endpoint: 431 for a request head of more than 64 KiB, 503 for too many "
    "connections, 400 for bytes that are not HTTP."
)
_CURL = "curl -F image=@digit.png URL{path}, or curl --data-binary with the image's content type"
_API, _PROTOCOL, _MONITORING = "Service APIs", "Open Inference Protocol", "Observability"
_TAGS = [
    {"name": _PROTOCOL, "description": "KServe's V2 protocol, JSON and binary"},
    {"name": _MONITORING, "description": "Endpoints for health probes and for Prometheus"},
]
_TEXT: Schema = {"type": "string"}
_BINARY: Schema = {"type": "string", "format": "binary"}
_POSITIVE: Schema = {"type": "integer", "minimum": 1}
_SECURITY: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the API key, if one is set"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "the same key"},
}
# By status: name of the response component, its description, the schemas of its headers.
_REFUSALS: dict[str, tuple[str, str, Schema]] = {
    "400": ("InvalidInput", "the body, the query or a header is invalid", {}),
    "401": ("Unauthorized", "the API key is missing or wrong", {"WWW-Authenticate": _TEXT}),
    "404": ("UnknownModel", "the model or version is not served, or has no feature maps", {}),
    "405": ("MethodNotAllowed", "Allow lists the methods of the path", {"Allow": _TEXT}),
    "413": ("PayloadTooLarge", "too many bytes, pixels or samples", {}),
    "415": ("UnsupportedMedia", "the content type or encoding is not supported", {}),
    "422": ("Unprocessable", "no digit in the image, or outputs that are not finite", {}),
    "429": (
        "Overloaded",
        "the queue is full; retry after these seconds",
        {"Retry-After": _POSITIVE},
    ),
    "500": ("Fault", "an error of the service", {}),
    "503": ("NotReady", "the service is shutting down, or a model fails its golden samples", {}),
    "504": ("TooLate", "the request waited too long and was not computed", {}),
}
_INFERENCE_REFUSALS = ("400", "404", "413", "415", "422", "429", "503", "504")
# Path, operation id, summary, schema of the answer (None: text), statuses of refusals.
_GETS: list[tuple[str, str, str, str | None, Sequence[str]]] = [
    ("/models", "list_models", "Served models with evidence", "ModelCards", ()),
    ("/metrics", "metrics", "Prometheus metrics of all workers", None, ()),
    ("/healthz/deep", "check_golden", "Run all golden samples", "GoldenCheck", ("503", "504")),
    ("/v2", "server_metadata", "Name and extensions of the server", "ServerMetadata", ()),
    ("/v2/health/live", "live", "Liveness of the process", "Health", ()),
    ("/v2/health/ready", "ready", "Readiness of the service", "Health", ("503",)),
    (_MODEL, "model_metadata", "Tensors of a model", "ModelMetadata", ("404",)),
    (_MODEL_VERSION, "model_metadata_version", "Tensors of a model", "ModelMetadata", ("404",)),
    (f"{_MODEL}/ready", "model_ready", "Readiness of a model", "Health", ("404", "503")),
    (
        f"{_MODEL_VERSION}/ready",
        "model_ready_version",
        "Readiness of a model",
        "Health",
        ("404", "503"),
    ),
]


@dataclass(frozen=True)
class _Post:
    """An operation that runs a model.

    Attributes:
        content: Content of the request's body.
        answer: Content of the answer.
        manifests: The models that can be named in the path.
        parameters: Further parameters, besides those in the path and the request id.
        headers: Further headers of the answer.
    """

    path: str
    operation_id: str
    summary: str
    content: Schema
    answer: Schema
    manifests: Sequence[Manifest]
    examples: Sequence[Example] = ()
    parameters: Sequence[Schema] = ()
    headers: Schema = field(default_factory=dict)


def openapi_document(
    base: dict[str, Any], models: Sequence[DescribedModel], settings: Settings
) -> dict[str, Any]:
    """BentoML's OpenAPI document, extended by the endpoints of this service.

    Args:
        base: BentoML's document; its components are left out, because only its tasks use them.
        models: The served models.
        settings: Limits, the API key, and whether answers have identity headers.
    """
    manifests = [model.manifest for model in models]
    names = [manifest.name for manifest in manifests]
    version = base.get("info", {}).get("version")
    paths = {
        path: {"get": _get(path, operation_id, summary, schema, codes, manifests)}
        for path, operation_id, summary, schema, codes in _GETS
    }
    for post in _posts(models):
        paths[post.path] = {"post": _post(post, has_identity=settings.answer_headers)}
    for path, item in paths.items():
        for operation in item.values():
            operation["tags"] = [_tag(path)]
            if settings.api_key is not None and path not in OPEN_PATHS:
                operation["security"] = [{name: []} for name in _SECURITY]
                operation["responses"]["401"] = _ref("responses", "Unauthorized")
    return {
        **base,
        "openapi": VERSION,
        "info": {
            "title": "Digit classifier",
            "version": "dev" if version in (None, "None") else version,  # set in a Bento only
            "description": _DESCRIPTION.format(models=", ".join(names)),
        },
        "tags": [*base.get("tags", []), *_TAGS],
        "components": {
            "schemas": component_schemas(models, settings.max_request_samples),
            "headers": _identity_headers(names) | _required({REQUEST_ID: _TEXT}),
            "responses": _refusal_components(),
            "securitySchemes": _SECURITY,
        },
        "paths": {**base.get("paths", {}), **paths},
    }


def _posts(models: Sequence[DescribedModel]) -> list[_Post]:
    manifests = [model.manifest for model in models]
    digits = [model.manifest for model in models if model.adapter.task == DIGITS]
    with_features = [manifest for manifest in manifests if manifest.features]
    takes_images = any(model.adapter.task != TENSORS for model in models)
    posts = [
        _infer(f"{_MODEL}/infer", "infer", manifests),
        _infer(f"{_MODEL_VERSION}/infer", "infer_version", manifests),
        _Post(
            "/models/{model}/predict",
            "predict_named_tensors",
            "Inference with named tensors or, for models of images, an image file",
            _content("NamedTensorsRequest") | (_image_content() if takes_images else {}),
            _content("NamedTensorsAnswer"),
            manifests,
            named_tensors_examples(manifests),
        ),
    ]
    if digits:
        model = _parameter("model", "query", _one_of(manifest.name for manifest in digits))
        words = "adds the image to the answer, as the model receives it"
        show = _parameter(SHOW, "query", _one_of([SHOWABLE]), description=words)
        request, answer = _content("PredictRequest"), _content("PredictAnswer")
        in_pixels, in_files = (
            "Recognize digits in pixels",
            "Recognize a digit in a PNG or JPEG file",
        )
        examples = predict_examples(digits)
        posts += [
            _Post("/predict", "predict", in_pixels, request, answer, digits, examples, [model]),
            _Post(
                "/predict/image",
                "predict_image",
                in_files,
                _image_content(),
                answer,
                digits,
                parameters=[model, show],
            ),
        ]
    if with_features:
        posts += [
            _Post(
                "/models/{model}/features",
                "features",
                "Feature maps of the first layer",
                _content("FeaturesRequest"),
                _content("FeaturesAnswer"),
                with_features,
                features_examples(with_features),
            )
        ]
    return posts


def _infer(path: str, operation_id: str, manifests: Sequence[Manifest]) -> _Post:
    raw = {BYTES: {"schema": _BINARY}}
    examples = inference_examples(manifests)
    length = _parameter(
        JSON_LENGTH,
        "header",
        {"type": "integer", "minimum": 0},
        description="bytes of JSON before the bytes of the inputs; 0 without JSON",
        examples={e.name: {"value": e.json_length} for e in examples if e.json_length is not None},
    )
    answer_length = {
        "description": "bytes of JSON (an InferenceResponse) before the bytes of the outputs",
        "schema": _POSITIVE,
    }
    return _Post(
        path,
        operation_id,
        "Inference with JSON, JSON followed by bytes, or bytes only",
        _content("InferenceRequest") | raw,
        _content("InferenceResponse") | raw,
        manifests,
        examples,
        [length],
        {JSON_LENGTH: answer_length},
    )


def _get(
    path: str,
    operation_id: str,
    summary: str,
    schema: str | None,
    codes: Sequence[str],
    manifests: Sequence[Manifest],
) -> Schema:
    content = {"text/plain": {"schema": _TEXT}} if schema is None else _content(schema)
    operation = _operation(operation_id, summary, content, codes)
    return operation | {"parameters": _path_parameters(path, manifests)}


def _post(post: _Post, *, has_identity: bool) -> Schema:
    operation = _operation(post.operation_id, post.summary, post.answer, _INFERENCE_REFUSALS)
    identity = [*_identity_headers([])] if has_identity else []
    headers = operation["responses"]["200"]["headers"]
    headers |= {name: _ref("headers", name) for name in identity} | post.headers
    words = "repeated in the answer if it has at most 128 bytes, else replaced"
    content = {
        media_type: body
        | {
            "examples": {
                example.name: {"summary": example.summary, "value": example.body}
                for example in post.examples
                if example.media_type == media_type
            }
        }
        for media_type, body in post.content.items()
    }
    if "multipart/form-data" in content:
        operation["description"] = _CURL.format(path=post.path)
    return operation | {
        "parameters": [
            _parameter(REQUEST_ID, "header", _TEXT, description=words),
            *_path_parameters(post.path, post.manifests, post.examples),
            *post.parameters,
        ],
        "requestBody": {"required": True, "content": content},
    }


def _operation(operation_id: str, summary: str, content: Schema, codes: Sequence[str]) -> Schema:
    """The fields that all operations have; every one of them can be refused with 405 and 500."""
    answer = {
        "description": "the answer",
        "headers": {REQUEST_ID: _ref("headers", REQUEST_ID)},
        "content": content,
    }
    refusals = {code: _ref("responses", _REFUSALS[code][0]) for code in [*codes, "405", "500"]}
    return {
        "operationId": operation_id,
        "summary": summary,
        "responses": {"200": answer, **refusals},
    }


def _path_parameters(
    path: str, manifests: Sequence[Manifest], examples: Sequence[Example] = ()
) -> list[Schema]:
    """The parameters in a path's braces: model, or model and version."""
    values = {"model": [m.name for m in manifests], "version": [m.version for m in manifests]}
    return [
        _parameter(
            name,
            "path",
            _one_of(values[name]),
            required=True,
            examples={example.name: {"value": getattr(example, name)} for example in examples},
        )
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _parameter(name: str, place: str, schema: Schema, **more: Any) -> Schema:
    """A parameter; ``place`` is path, query or header, ``more`` are further fields."""
    return {"name": name, "in": place, "schema": schema, **more}


def _one_of(values: Iterable[str]) -> Schema:
    return {"type": "string", "enum": unique(values)}


def _image_content() -> Schema:
    """The content of an upload: a form with the file in the field ``image``, or the file itself."""
    form = {"type": "object", "required": ["image"], "properties": {"image": _BINARY}}
    types = {"image": {"contentType": "image/png, image/jpeg"}}
    files = {media_type: {"schema": _BINARY} for media_type in IMAGE_TYPES}
    return {"multipart/form-data": {"schema": form, "encoding": types}} | files


def _identity_headers(models: Sequence[str]) -> Schema:
    """The headers that say which model computed an answer, in which batch and how fast."""
    duration = r"^queue;dur=[0-9.]+, compute;dur=[0-9.]+$"
    return _required(
        {
            "x-model": _one_of(models),
            "x-model-version": _TEXT,
            "x-model-variant": _TEXT | {"examples": ["onnx"]},
            "x-provider": _TEXT | {"examples": ["CPUExecutionProvider"]},
            "x-batch-size": _POSITIVE | {"description": "samples in the batch"},
            "server-timing": _TEXT | {"pattern": duration, "description": "milliseconds"},
        }
    )


def _refusal_components() -> Schema:
    return {
        name: {
            "description": description,
            "content": _content("Error"),
            "headers": {REQUEST_ID: _ref("headers", REQUEST_ID), **_required(headers)},
        }
        for name, description, headers in _REFUSALS.values()
    }


def _required(headers: Schema) -> Schema:
    return {name: {"required": True, "schema": schema} for name, schema in headers.items()}


def _content(schema: str) -> Schema:
    """JSON content with a schema of ``answers``."""
    return {JSON: {"schema": _ref("schemas", schema)}}


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _tag(path: str) -> str:
    if path.startswith("/v2"):
        return _PROTOCOL
    return _MONITORING if path in ("/metrics", "/healthz/deep") else _API
