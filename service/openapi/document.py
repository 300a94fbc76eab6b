"""Paths, parameters, responses and headers of the OpenAPI document.

An example of a body belongs with the examples of parameters that have the same name.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.body import IMAGE_TYPES
from service.openapi.examples import (
    BYTES,
    JSON,
    inference_examples,
    named_tensors_example,
)
from service.openapi.schemas import (
    DIGITS,
    TENSORS,
    DescribedModel,
    Schema,
    component_schemas,
    unique,
)
from service.query import SHOW, SHOWABLE
from service.settings import Settings

REQUEST_ID, JSON_LENGTH = "x-request-id", "Inference-Header-Content-Length"
OPENAPI_VERSION = "3.1.0"  # its schemas are JSON Schema 2020-12, which pydantic generates
# Health endpoints need no API key.
OPEN_PATHS = {"/v2/health/live", "/v2/health/ready"}
_DESCRIPTION = (
    "Recognizes handwritten digits. Served models: {models}. Each model answered its golden "
    "samples correctly on this device before the service became ready; GET /models returns the "
    "evidence.\n\n"
    "The answer of every endpoint has the header x-request-id: the request's own id or a new one. "
    'The body of an error is {{"error": "..."}}. This includes errors that are found before a '
    "request reaches an endpoint: 431 for a request head of more than 64 KiB, 503 for too many "
    "connections, 400 for bytes that are not HTTP."
)
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
        "the queue is full; Retry-After estimates when it will have room, in seconds",
        {"Retry-After": _POSITIVE},
    ),
    "500": ("Fault", "an error of the service", {}),
    "503": ("NotReady", "the service is shutting down, or a model fails its golden samples", {}),
    "504": ("TooLate", "the request waited too long and was not computed", {}),
}
_INFERENCE_REFUSALS = ("400", "404", "413", "415", "422", "429", "503", "504")
_BLANK = {"images": [[0] * 28] * 28}
_CURL = "curl -F image=@digit.png URL{path}, or curl --data-binary with the image's content type"


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
    version = base.get("info", {}).get("version")
    return {
        **base,
        "openapi": OPENAPI_VERSION,
        "info": {
            "title": "Digit classifier",
            "version": "dev" if version in (None, "None") else version,  # set in a Bento only
            "description": _DESCRIPTION.format(models=", ".join(m.name for m in manifests)),
        },
        "tags": [*base.get("tags", []), *_TAGS],
        "components": {
            "schemas": component_schemas(models, settings.max_request_images),
            "headers": _header_components([manifest.name for manifest in manifests]),
            "responses": _refusal_components(),
            "examples": {
                name: {"summary": example.summary, "value": example.body}
                for manifest in manifests
                for name, example in inference_examples(manifest).items()
            },
            "securitySchemes": _SECURITY,
        },
        "paths": {**base.get("paths", {}), **_Paths(models, settings).all()},
    }


class _Paths:
    """All paths of this service."""

    def __init__(self, models: Sequence[DescribedModel], settings: Settings) -> None:
        self._manifests = [model.manifest for model in models]
        self._digits = [m.manifest for m in models if m.adapter.task == DIGITS]
        self._with_features = [m for m in self._manifests if m.features]
        self._takes_images = any(model.adapter.task != TENSORS for model in models)
        self._needs_key = settings.api_key is not None
        self._has_identity_headers = settings.answer_headers

    def all(self) -> Schema:
        """Every path with its operations."""
        model = _path_parameter("model", [m.name for m in self._manifests])
        version = _path_parameter("version", [m.version for m in self._manifests])
        paths = (
            self._monitoring()
            | self._protocol("/v2/models/{model}", [model])
            | self._protocol("/v2/models/{model}/versions/{version}", [model, version], "_version")
            | self._named_tensors()
        )
        if self._digits:
            paths |= self._predict()
        if self._with_features:
            paths |= self._features()
        for path, item in paths.items():
            for operation in (item[method] for method in ("get", "post") if method in item):
                operation["tags"] = [_tag(path)]
                if self._needs_key and path not in OPEN_PATHS:
                    operation["security"] = [{name: []} for name in _SECURITY]
                    operation["responses"] |= _refusals(["401"])
        return paths

    def _monitoring(self) -> Schema:
        text, health = _content(_TEXT, "text/plain"), _content(_schema("Health"))
        cards, golden = _content(_schema("ModelCards")), _content(_schema("GoldenCheck"))
        server = _content(_schema("ServerMetadata"))
        deep = _operation(
            "check_golden", "Run the golden samples of every model now", golden, ["503", "504"]
        )
        ready = _operation("ready", "Readiness of the service", health, ["503"])
        return {
            "/models": {"get": _operation("list_models", "Served models with evidence", cards)},
            "/metrics": {"get": _operation("metrics", "Prometheus metrics of all workers", text)},
            "/healthz/deep": {"get": deep},
            "/v2": {"get": _operation("server_metadata", "Name and extensions", server)},
            "/v2/health/live": {"get": _operation("live", "Liveness of the process", health)},
            "/v2/health/ready": {"get": ready},
        }

    def _protocol(self, path: str, parameters: list[Schema], suffix: str = "") -> Schema:
        """The Open Inference Protocol's paths of a model; ``suffix`` makes operation ids unique."""
        metadata, health = _content(_schema("ModelMetadata")), _content(_schema("Health"))
        described = _operation(
            f"model_metadata{suffix}", "Versions and tensors of the model", metadata, ["404"]
        )
        ready = _operation(f"model_ready{suffix}", "Readiness of the model", health, ["404", "503"])
        return {
            path: {"parameters": parameters, "get": described},
            f"{path}/ready": {"parameters": parameters, "get": ready},
            f"{path}/infer": {"post": self._infer(f"infer{suffix}", is_versioned=bool(suffix))},
        }

    def _infer(self, operation_id: str, *, is_versioned: bool) -> Schema:
        examples = {k: (m, e) for m in self._manifests for k, e in inference_examples(m).items()}
        content = {
            media_type: {
                "schema": schema,
                "examples": {
                    name: {"$ref": f"#/components/examples/{name}"}
                    for name, (_, example) in examples.items()
                    if example.media_type == media_type
                },
            }
            for media_type, schema in ((JSON, _schema("InferenceRequest")), (BYTES, _BINARY))
        }
        answer = _content(_schema("InferenceResponse")) | _content(_BINARY, BYTES)
        summary = "Inference with JSON, JSON followed by bytes, or bytes only"
        operation = self._post(operation_id, summary, content, answer)
        operation["responses"]["200"]["headers"][JSON_LENGTH] = {
            "description": "bytes of JSON (an InferenceResponse) before the bytes of the outputs",
            "schema": _POSITIVE,
        }
        lengths = {k: e.json_length for k, (_, e) in examples.items() if e.json_length is not None}
        operation["parameters"] += [
            _path_parameter(
                "model",
                [m.name for m in self._manifests],
                {name: manifest.name for name, (manifest, _) in examples.items()},
            ),
            {
                "name": JSON_LENGTH,
                "in": "header",
                "description": "bytes of JSON before the bytes of the inputs; 0 without JSON",
                "schema": {"type": "integer", "minimum": 0},
                "examples": {name: {"value": length} for name, length in lengths.items()},
            },
        ]
        if is_versioned:
            versions = {name: manifest.version for name, (manifest, _) in examples.items()}
            all_versions = [manifest.version for manifest in self._manifests]
            operation["parameters"] += [_path_parameter("version", all_versions, versions)]
        return operation

    def _named_tensors(self) -> Schema:
        path = "/models/{model}/predict"
        found = {m.name: named_tensors_example(m) for m in self._manifests}
        examples = {name: {"value": body} for name, body in found.items() if body is not None}
        content = _content(_schema("NamedTensorsRequest"), examples=examples)
        if self._takes_images:
            content |= _image_content()
        summary = "Inference with named tensors or, for models of images, an image file"
        answer = _content(_schema("NamedTensorsAnswer"))
        operation = self._post("predict_named_tensors", summary, content, answer)
        names = [manifest.name for manifest in self._manifests]
        operation["parameters"] += [
            _path_parameter("model", names, {name: name for name in examples})
        ]
        if self._takes_images:
            operation["description"] = _CURL.format(path=path)
        return {path: {"post": operation}}

    def _predict(self) -> Schema:
        names = [manifest.name for manifest in self._digits]
        model = {"name": "model", "in": "query", "schema": {"type": "string", "enum": names}}
        bodies = {name: {"value": _BLANK | {"model": name}} for name in names}
        pixels = _content(_schema("PredictRequest"), examples=bodies)
        answer = _content(_schema("PredictAnswer"))
        predict = self._post("predict", "Recognize digits in arrays of pixels", pixels, answer)
        summary = "Recognize a digit in a PNG or JPEG file"
        upload = self._post("predict_image", summary, _image_content(), answer)
        upload["description"] = _CURL.format(path="/predict/image")
        predict["parameters"] += [model]
        upload["parameters"] += [
            model,
            {
                "name": SHOW,
                "in": "query",
                "description": "adds the image to the answer, as the model receives it",
                "schema": {"type": "string", "enum": [SHOWABLE]},
            },
        ]
        return {"/predict": {"post": predict}, "/predict/image": {"post": upload}}

    def _features(self) -> Schema:
        names = [manifest.name for manifest in self._with_features]
        bodies = {name: {"value": _BLANK} for name in names}
        pixels = _content(_schema("FeaturesRequest"), examples=bodies)
        answer = _content(_schema("FeaturesAnswer"))
        operation = self._post("features", "Feature maps of the first layer", pixels, answer)
        operation["parameters"] += [_path_parameter("model", names, {name: name for name in names})]
        return {"/models/{model}/features": {"post": operation}}

    def _post(self, operation_id: str, summary: str, content: Schema, answer: Schema) -> Schema:
        """An operation that runs a model."""
        operation = _operation(operation_id, summary, answer, _INFERENCE_REFUSALS)
        if self._has_identity_headers:
            headers = {name: _header(name) for name in _identity_headers([])}
            operation["responses"]["200"]["headers"] |= headers
        request_id = {
            "name": REQUEST_ID,
            "in": "header",
            "description": "repeated in the answer if it has at most 128 bytes, else replaced",
            "schema": _TEXT,
        }
        return operation | {
            "parameters": [request_id],
            "requestBody": {"required": True, "content": content},
        }


def _operation(
    operation_id: str, summary: str, content: Schema, codes: Sequence[str] = ()
) -> Schema:
    """An operation without a request body.

    Args:
        operation_id: Its unique name.
        summary: One line for the reader.
        content: Content of the answer, by media type.
        codes: Statuses of its refusals, besides 405 and 500, which every operation has.
    """
    answer = {
        "description": "the answer",
        "headers": {REQUEST_ID: _header(REQUEST_ID)},
        "content": content,
    }
    return {
        "operationId": operation_id,
        "summary": summary,
        "responses": {"200": answer, **_refusals([*codes, "405", "500"])},
    }


def _path_parameter(
    name: str, values: Sequence[str], examples: Mapping[str, str] | None = None
) -> Schema:
    """A parameter in the path.

    Args:
        name: Of the parameter.
        values: The values that the service knows.
        examples: Values by the name of the example; by default each value under its own name.
    """
    named = {value: value for value in values} if examples is None else examples
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": unique(values)},
        "examples": {key: {"value": value} for key, value in named.items()},
    }


def _image_content() -> Schema:
    """The content of an upload: a form with the file in the field ``image``, or the file itself."""
    form = {"type": "object", "required": ["image"], "properties": {"image": _BINARY}}
    types = {"image": {"contentType": "image/png, image/jpeg"}}
    files = {media_type: {"schema": _BINARY} for media_type in IMAGE_TYPES}
    return _content(form, "multipart/form-data", encoding=types) | files


def _header_components(models: Sequence[str]) -> Schema:
    return _identity_headers(models) | {
        REQUEST_ID: {
            "required": True,
            "description": "the id of the request, or a new one",
            "schema": _TEXT,
        }
    }


def _identity_headers(models: Sequence[str]) -> Schema:
    """The headers that say which model computed an answer, in which batch and how fast."""
    return _required(
        {
            "x-model": _TEXT | ({"enum": list(models)} if models else {}),
            "x-model-version": _TEXT,
            "x-model-variant": _TEXT | {"examples": ["onnx"]},
            "x-provider": _TEXT | {"examples": ["CPUExecutionProvider"]},
            "x-batch-size": _POSITIVE | {"description": "samples in the batch"},
            "server-timing": {
                "type": "string",
                "pattern": r"^queue;dur=[0-9.]+, compute;dur=[0-9.]+$",
                "description": "milliseconds in the queue, and of running the batch",
            },
        }
    )


def _refusal_components() -> Schema:
    return {
        name: {
            "description": description,
            "content": _content(_schema("Error")),
            "headers": {REQUEST_ID: _header(REQUEST_ID), **_required(headers)},
        }
        for name, description, headers in _REFUSALS.values()
    }


def _refusals(codes: Iterable[str]) -> Schema:
    """References to the responses of these statuses."""
    return {code: {"$ref": f"#/components/responses/{_REFUSALS[code][0]}"} for code in codes}


def _required(headers: Schema) -> Schema:
    return {name: {"required": True, "schema": schema} for name, schema in headers.items()}


def _schema(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(name: str) -> Schema:
    return {"$ref": f"#/components/headers/{name}"}


def _content(schema: Schema, media_type: str = JSON, **more: Any) -> Schema:
    """Content of one media type; ``more`` are further fields such as examples."""
    return {media_type: {"schema": schema, **more}}


def _tag(path: str) -> str:
    if path.startswith("/v2"):
        return _PROTOCOL
    return _MONITORING if path in ("/metrics", "/healthz/deep") else _API
