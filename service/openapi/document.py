"""Paths, parameters, responses and headers of the OpenAPI document.

An example of a body belongs with the examples of parameters that have the same name.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from export.bundle.manifest import Manifest
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
_READY = ("404", "503")
# Path, operation id, summary, schema of the answer, statuses of refusals.
_GETS: list[tuple[str, str, str, str, Sequence[str]]] = [
    ("/models", "list_models", "Served models with evidence", "ModelCards", ()),
    ("/healthz/deep", "check_golden", "Run all golden samples", "GoldenCheck", ("503", "504")),
    ("/v2", "server_metadata", "Name and extensions of the server", "ServerMetadata", ()),
    ("/v2/health/live", "live", "Liveness of the process", "Health", ()),
    ("/v2/health/ready", "ready", "Readiness of the service", "Health", ("503",)),
    (_MODEL, "model_metadata", "Tensors of a model", "ModelMetadata", ("404",)),
    (_MODEL_VERSION, "model_metadata_version", "Tensors of a model", "ModelMetadata", ("404",)),
    (f"{_MODEL}/ready", "model_ready", "Readiness of a model", "Health", _READY),
    (f"{_MODEL_VERSION}/ready", "model_ready_version", "Readiness of a model", "Health", _READY),
]


@dataclass(frozen=True)
class _Operation:
    """A GET operation or, with a body, a POST operation that runs a model.

    Attributes:
        answer: Content of the answer, by media type.
        manifests: The models that can be named in the path.
        refusals: Statuses, besides 405 and 500, which every operation has.
        body: Content of the request's body, by media type.
        parameters: Further parameters, besides those in the path and the request id.
        headers: Further headers of the answer, besides the request id and the identity.
    """

    path: str
    operation_id: str
    summary: str
    answer: Schema
    manifests: Sequence[Manifest]
    refusals: Sequence[str] = _INFERENCE_REFUSALS
    body: Schema | None = None
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
    paths: Schema = {}
    for operation in [*_gets(manifests), *_posts(models)]:
        described = _describe(operation, has_identity=settings.answer_headers)
        if settings.api_key is not None and operation.path not in OPEN_PATHS:
            described["security"] = [{name: []} for name in _SECURITY]
            described["responses"]["401"] = _ref("responses", "Unauthorized")
        paths[operation.path] = {"get" if operation.body is None else "post": described}
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


def _gets(manifests: Sequence[Manifest]) -> list[_Operation]:
    text = {"text/plain": {"schema": _TEXT}}
    return [
        _Operation("/metrics", "metrics", "Prometheus metrics of all workers", text, (), ()),
        *(
            _Operation(path, operation_id, summary, _content(schema), manifests, refusals)
            for path, operation_id, summary, schema, refusals in _GETS
        ),
    ]


def _posts(models: Sequence[DescribedModel]) -> list[_Operation]:
    manifests = [model.manifest for model in models]
    takes_images = any(model.adapter.task != TENSORS for model in models)
    posts = [
        _infer(f"{_MODEL}/infer", "infer", manifests),
        _infer(f"{_MODEL_VERSION}/infer", "infer_version", manifests),
        _Operation(
            "/models/{model}/predict",
            "predict_named_tensors",
            "Inference with named tensors or, for models of images, an image file",
            _content("NamedTensorsAnswer"),
            manifests,
            body=_content("NamedTensorsRequest") | (_image_content() if takes_images else {}),
            examples=named_tensors_examples(manifests),
        ),
    ]
    if digits := [model.manifest for model in models if model.adapter.task == DIGITS]:
        posts += _predict(digits)
    if with_features := [manifest for manifest in manifests if manifest.features]:
        features = _Operation(
            "/models/{model}/features",
            "features",
            "Feature maps of the first layer",
            _content("FeaturesAnswer"),
            with_features,
            body=_content("FeaturesRequest"),
            examples=features_examples(with_features),
        )
        posts.append(features)
    return posts


def _infer(path: str, operation_id: str, manifests: Sequence[Manifest]) -> _Operation:
    raw = {BYTES: {"schema": _BINARY}}
    examples = inference_examples(manifests)
    length = _parameter(
        JSON_LENGTH,
        "header",
        {"type": "integer", "minimum": 0},
        description="bytes of JSON before the bytes of the inputs; 0 without JSON",
        examples={e.name: {"value": e.json_length} for e in examples if e.json_length is not None},
    )
    words = "bytes of JSON (an InferenceResponse) before the bytes of the outputs"
    return _Operation(
        path,
        operation_id,
        "Inference with JSON, JSON followed by bytes, or bytes only",
        _content("InferenceResponse") | raw,
        manifests,
        body=_content("InferenceRequest") | raw,
        examples=examples,
        parameters=[length],
        headers={JSON_LENGTH: {"description": words, "schema": _POSITIVE}},
    )


def _predict(manifests: Sequence[Manifest]) -> list[_Operation]:
    model = _parameter("model", "query", _one_of(manifest.name for manifest in manifests))
    words = "adds the image to the answer, as the model receives it"
    show = _parameter(SHOW, "query", _one_of([SHOWABLE]), description=words)
    return [
        _Operation(
            "/predict",
            "predict",
            "Recognize digits in arrays of pixels",
            _content("PredictAnswer"),
            manifests,
            body=_content("PredictRequest"),
            examples=predict_examples(manifests),
            parameters=[model],
        ),
        _Operation(
            "/predict/image",
            "predict_image",
            "Recognize a digit in a PNG or JPEG file",
            _content("PredictAnswer"),
            manifests,
            body=_image_content(),
            parameters=[model, show],
        ),
    ]


def _describe(operation: _Operation, *, has_identity: bool) -> Schema:
    """The operation as OpenAPI writes it."""
    refusals = [*operation.refusals, "405", "500"]
    headers = {REQUEST_ID: _ref("headers", REQUEST_ID)} | operation.headers
    answer = {"description": "the answer", "headers": headers, "content": operation.answer}
    parameters = [*_path_parameters(operation), *operation.parameters]
    described = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "tags": [_tag(operation.path)],
        "parameters": parameters,
        "responses": {
            "200": answer,
            **{code: _ref("responses", _REFUSALS[code][0]) for code in refusals},
        },
    }
    if operation.body is None:
        return described
    if has_identity:
        headers |= {name: _ref("headers", name) for name in _identity_headers([])}
    words = "repeated in the answer if it has at most 128 bytes, else replaced"
    parameters.append(_parameter(REQUEST_ID, "header", _TEXT, description=words))
    content = {
        media_type: body | {"examples": _body_examples(operation.examples, media_type)}
        for media_type, body in operation.body.items()
    }
    if "multipart/form-data" in content:
        described["description"] = _CURL.format(path=operation.path)
    return described | {"requestBody": {"required": True, "content": content}}


def _body_examples(examples: Sequence[Example], media_type: str) -> Schema:
    return {
        example.name: {"summary": example.summary, "value": example.body}
        for example in examples
        if example.media_type == media_type
    }


def _path_parameters(operation: _Operation) -> list[Schema]:
    """The parameters in the braces of the path: model, or model and version."""
    values = {
        "model": [manifest.name for manifest in operation.manifests],
        "version": [manifest.version for manifest in operation.manifests],
    }
    return [
        _parameter(
            name,
            "path",
            _one_of(values[name]),
            required=True,
            examples={e.name: {"value": getattr(e, name)} for e in operation.examples},
        )
        for name in re.findall(r"\{(\w+)\}", operation.path)
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
