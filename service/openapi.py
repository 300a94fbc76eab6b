"""The OpenAPI description of our endpoints, laid into BentoML's document at /docs.json.

What it says of models, tensors, limits and the key is read from manifests and settings. Examples
of one name belong together: a body's, with the parameters' that bear the same name.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from export.manifest import Manifest
from service.body import IMAGE_TYPES
from service.examples import examples
from service.feature_schemas import feature_schemas
from service.models import ServedModel
from service.openapi_common import (
    REQUEST_ID,
    REQUEST_ID_HEADER,
    SECURITY,
    answer_headers,
    refusals,
    refused_with,
)
from service.query import SHOW, SHOWABLE
from service.reception import LONGEST_ID, OPEN_PATHS
from service.schemas import (
    BINARY,
    JSON,
    RAW,
    SCHEMAS,
    TEXT,
    Schema,
    body,
    predict_schemas,
    ref,
    request_schemas,
)
from service.settings import Settings

JSON_LENGTH = "Inference-Header-Content-Length"
_DESCRIPTION = (
    "Reads handwritten digits. Served models: {models}; each answered its golden samples rightly "
    "on this device before the service became ready. GET /models gives the proof.\n\n"
    "Every endpoint's answer bears x-request-id: the request's or a new one. A refusal is JSON, "
    '{{"error": "..."}}, also what comes before any endpoint: a head of more than 64 KiB gets 431, '
    "a connection too many 503, and what is no HTTP 400."
)
_OURS, _PROTOCOL, _WATCH = "Service APIs", "Open Inference Protocol", "Observability"
_TAGS = [
    {"name": _PROTOCOL, "description": "KServe's V2 protocol, JSON and binary"},
    {"name": _WATCH, "description": "What probes and Prometheus ask"},
]
_ASKED = ("400", "404", "413", "415", "429", "504")
_BLANK = {"images": [[0] * 28] * 28}
_CURL = "curl -F image=@digit.png URL/predict/image, or curl --data-binary with the image's type"


def merged_openapi(
    base: dict[str, Any], models: Sequence[ServedModel], settings: Settings
) -> dict[str, Any]:
    """BentoML's document with our paths in it, and our components.

    Args:
        base: BentoML's own document.
        models: The served ones.
        settings: Limits, the key and which headers are sent.
    """
    manifests = [model.manifest for model in models]
    readers = [model.manifest for model in models if model.proven.reads_digits]
    version = base.get("info", {}).get("version")
    info = {
        "title": "Digit classifier",
        "version": "dev" if version in (None, "None") else version,  # the Bento's, if in one
        "description": _DESCRIPTION.format(models=", ".join(m.name for m in manifests)),
    }
    return {
        **base,
        "info": info,
        "tags": [*base.get("tags", []), *_TAGS],
        # BentoML's own are for its tasks, which we have not; one of them is no OpenAPI 3.0.
        "components": _components(manifests, readers, settings),
        "paths": {**base.get("paths", {}), **_Paths(manifests, readers, settings).all()},
    }


def _components(manifests: list[Manifest], readers: list[Manifest], settings: Settings) -> Schema:
    inputs = [spec for manifest in manifests for spec in manifest.inputs]
    outputs = [spec for manifest in manifests for spec in manifest.outputs]
    schemas = SCHEMAS | request_schemas(
        _each(spec.name for spec in inputs),
        _each(spec.datatype for spec in inputs),
        _each(spec.name for spec in outputs),
    )
    if showing := [m.name for m in manifests if m.features]:
        schemas |= feature_schemas(showing)
    if readers:
        names, labels = [m.name for m in readers], [m.labels for m in readers]
        schemas |= predict_schemas(names, labels, settings.max_request_images)
    return {
        "schemas": schemas,
        "headers": answer_headers([m.name for m in manifests]) | REQUEST_ID_HEADER,
        "responses": refusals(),
        "examples": {
            name: {"summary": example.summary, "value": example.body}
            for manifest in manifests
            for name, example in examples(manifest).items()
        },
        "securitySchemes": SECURITY,
    }


def _each(words: Iterable[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(words))


class _Paths:
    """All paths of the document."""

    def __init__(
        self, manifests: list[Manifest], readers: list[Manifest], settings: Settings
    ) -> None:
        self._manifests, self._readers = manifests, readers
        self._keyed, self._says_who = settings.api_key is not None, settings.answer_headers

    def all(self) -> Schema:
        """Every path with its operations."""
        model = _in_path("model", {m.name: m.name for m in self._manifests})
        version = _in_path("version", {m.name: m.version for m in self._manifests})
        paths = (
            self._watching()
            | self._of_a_model("/v2/models/{model}", [model])
            | self._of_a_model(
                "/v2/models/{model}/versions/{version}", [model, version], "_version"
            )
        )
        if self._readers:  # else there is nothing that they could answer
            paths |= self._predict()
        if showing := [m.name for m in self._manifests if m.features]:
            paths |= self._features(showing)
        for path, item in paths.items():
            for operation in (item[method] for method in ("get", "post") if method in item):
                operation["tags"] = [_tag(path)]
                if self._keyed and path not in OPEN_PATHS:
                    operation["security"] = [{name: []} for name in SECURITY]
                    operation["responses"] |= refused_with(["401"])
        return paths

    def _watching(self) -> Schema:
        cards, golden, server = (
            body(ref("schemas", name)) for name in ("ModelCards", "GoldenCheck", "ServerMetadata")
        )
        text, health = body(TEXT, "text/plain"), body(ref("schemas", "Health"))
        deep = _get("check_golden", "Ask every model golden samples now", golden, ["503", "504"])
        return {
            "/models": {"get": _get("list_models", "The models and their proof", cards)},
            "/metrics": {"get": _get("metrics", "Prometheus metrics of all workers", text)},
            "/healthz/deep": {"get": deep},
            "/v2": {"get": _get("server_metadata", "The server's name and extensions", server)},
            "/v2/health/live": {"get": _get("live", "Is the process up?", health)},
            "/v2/health/ready": {"get": _get("ready", "Are the models right?", health, ["503"])},
        }

    def _of_a_model(self, path: str, parameters: list[Schema], suffix: str = "") -> Schema:
        """A model's paths; ``suffix`` tells their operations' ids from those without a version."""
        card, health = (body(ref("schemas", name)) for name in ("ModelMetadata", "Health"))
        described = _get(f"model_metadata{suffix}", "Its versions and tensors", card, ["404"])
        ready = _get(f"model_ready{suffix}", "Is it served?", health, ["404", "503"])
        return {
            path: {"parameters": parameters, "get": described},
            f"{path}/ready": {"parameters": parameters, "get": ready},
            f"{path}/infer": {"post": self._infer(f"infer{suffix}", versioned=bool(suffix))},
        }

    def _infer(self, operation: str, *, versioned: bool) -> Schema:
        worked = {k: (m, e) for m in self._manifests for k, e in examples(m).items()}
        content = {
            media_type: {
                "schema": schema,
                "examples": {
                    name: ref("examples", name)
                    for name, (_, example) in worked.items()
                    if example.media_type == media_type
                },
            }
            for media_type, schema in ((JSON, ref("schemas", "InferenceRequest")), (RAW, BINARY))
        }
        answer = body(ref("schemas", "InferenceResponse")) | body(BINARY, RAW)
        summary = "Infer by JSON, by JSON and bytes behind it, or by bytes alone"
        described = self._post(operation, summary, content, answer)
        described["responses"]["200"]["headers"][JSON_LENGTH] = {
            "description": "bytes of JSON (an InferenceResponse) before the outputs' bytes, if any",
            "schema": {"type": "integer", "minimum": 1},
        }
        lengths = {k: e.json_length for k, (_, e) in worked.items() if e.json_length is not None}
        version = _in_path("version", {name: m.version for name, (m, _) in worked.items()})
        described["parameters"] += [
            _in_path("model", {name: m.name for name, (m, _) in worked.items()}),
            *([version] if versioned else []),
            {
                "name": JSON_LENGTH,
                "in": "header",
                "description": "bytes of JSON before the inputs' bytes; 0: there is no JSON",
                "schema": {"type": "integer", "minimum": 0},
                "examples": {name: {"value": length} for name, length in lengths.items()},
            },
        ]
        return described

    def _predict(self) -> Schema:
        names = [m.name for m in self._readers]
        query = {"name": "model", "in": "query", "schema": {"type": "string", "enum": names}}
        bodies = {name: {"value": _BLANK | {"model": name}} for name in names}
        pixels = body(ref("schemas", "PredictRequest"), examples=bodies)
        form = {"type": "object", "required": ["image"], "properties": {"image": BINARY}}
        kinds = {"image": {"contentType": "image/png, image/jpeg"}}
        files = body(form, "multipart/form-data", encoding=kinds)
        for media_type in IMAGE_TYPES:
            files |= body(BINARY, media_type)
        answer = body(ref("schemas", "PredictAnswer"))
        predict = self._post("predict", "Read images, given as pixels", pixels, answer)
        upload = self._post("predict_image", "Read a digit from a PNG or JPEG", files, answer)
        upload["description"] = _CURL
        upload["responses"] |= refused_with(["422"])
        for operation in (predict, upload):
            operation["parameters"] += [query]
        upload["parameters"] += [
            {
                "name": SHOW,
                "in": "query",
                "description": "the answer also holds the image as the model reads it",
                "schema": {"type": "string", "enum": [SHOWABLE]},
            }
        ]
        return {"/predict": {"post": predict}, "/predict/image": {"post": upload}}

    def _features(self, models: list[str]) -> Schema:
        examples = {name: {"value": _BLANK} for name in models}
        pixels = body(ref("schemas", "FeaturesRequest"), examples=examples)
        answer = body(ref("schemas", "FeaturesAnswer"))
        shown = self._post("features", "What the first layer makes of an image", pixels, answer)
        shown["parameters"] += [_in_path("model", {name: name for name in models})]
        return {"/models/{model}/features": {"post": shown}}

    def _post(self, operation: str, summary: str, content: Schema, answer: Schema) -> Schema:
        described = _get(operation, summary, answer, _ASKED)
        if self._says_who:
            headers = {name: ref("headers", name) for name in answer_headers([])}
            described["responses"]["200"]["headers"] |= headers
        wanted = {
            "name": REQUEST_ID,
            "in": "header",
            "description": f"comes back if it has at most {LONGEST_ID} bytes; else a new one does",
            "schema": TEXT,
        }
        return described | {
            "parameters": [wanted],
            "requestBody": {"required": True, "content": content},
        }


def _get(operation: str, summary: str, content: Schema, codes: Sequence[str] = ()) -> Schema:
    """An operation without a body.

    Args:
        operation: Its id.
        summary: In words.
        content: Of its answer.
        codes: Of its refusals, but for those that every operation knows.
    """
    answer: Schema = {
        "description": "the answer",
        "headers": {REQUEST_ID: ref("headers", REQUEST_ID)},
    }
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {
            "200": answer | {"content": content},
            **refused_with([*codes, "405", "500"]),
        },
    }


def _tag(path: str) -> str:
    if path.startswith("/v2"):
        return _PROTOCOL
    return _WATCH if path in ("/metrics", "/healthz/deep") else _OURS


def _in_path(name: str, examples: Mapping[str, str]) -> Schema:
    """A parameter; its values are those of its examples."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": _each(examples.values())},
        "examples": {key: {"value": value} for key, value in examples.items()},
    }
