"""What operations of the OpenAPI document have in common: refusals, headers, the key."""

from collections.abc import Iterable, Sequence

from service.schemas import TEXT, Schema, body, ref

REQUEST_ID = "x-request-id"
REQUEST_ID_HEADER: Schema = {
    REQUEST_ID: {
        "required": True,
        "description": "the request's own, or a new one",
        "schema": TEXT,
    }
}
# Of a refusal: the component's name, what it means, and its headers' schemas.
REFUSALS: dict[str, tuple[str, str, Schema]] = {
    "400": ("InvalidInput", "the body or a header is not what the endpoint reads", {}),
    "401": ("Unauthorized", "no API key came, or another one", {"WWW-Authenticate": TEXT}),
    "404": ("UnknownModel", "no such model, not in this version, or without feature maps", {}),
    "405": ("MethodNotAllowed", "Allow names the method that is read", {"Allow": TEXT}),
    "413": ("PayloadTooLarge", "too many bytes, pixels or images", {}),
    "415": ("UnsupportedMedia", "a content type or encoding that is not read", {}),
    "422": ("NothingDrawn", "an image as it should be, but for a digit on it", {}),
    "429": (
        "Overloaded",
        "the queue is full; Retry-After says for about how long, in seconds",
        {"Retry-After": {"type": "integer", "minimum": 1}},
    ),
    "500": ("Fault", "the service failed, not the request", {}),
    "503": ("NotReady", "it is leaving, or a model fails its golden samples", {}),
    "504": ("TooLate", "it waited too long and was not computed", {}),
}
SECURITY: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the API key, if one is set"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "the same key"},
}


def refusals() -> Schema:
    """The responses of every refusal, by their components' names."""
    return {
        name: {
            "description": words,
            "content": body(ref("schemas", "Error")),
            "headers": {REQUEST_ID: ref("headers", REQUEST_ID), **_required(headers)},
        }
        for name, words, headers in REFUSALS.values()
    }


def refused_with(codes: Iterable[str]) -> Schema:
    """An operation's refusals, by status, as references to ``refusals``."""
    return {code: ref("responses", REFUSALS[code][0]) for code in codes}


def answer_headers(models: Sequence[str]) -> Schema:
    """The headers by which an answer says who gave it.

    Args:
        models: Names.
    """
    return _required(
        {
            "x-model": TEXT | ({"enum": list(models)} if models else {}),
            "x-model-version": TEXT,
            "x-model-variant": TEXT | {"example": "onnx"},
            "x-provider": TEXT | {"example": "CPUExecutionProvider"},
            "x-batch-size": {
                "type": "integer",
                "minimum": 1,
                "description": "images in the batch that ran",
            },
            "server-timing": {
                "type": "string",
                "pattern": r"^queue;dur=[0-9.]+, compute;dur=[0-9.]+$",
                "description": "milliseconds of waiting, and of the batch",
            },
        }
    )


def _required(headers: Schema) -> Schema:
    return {name: {"required": True, "schema": schema} for name, schema in headers.items()}
