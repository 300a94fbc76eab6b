"""The bodies in the OpenAPI document, as schemas."""

import itertools
from collections.abc import Sequence
from typing import Any

from export.manifest import DTYPES

Schema = dict[str, Any]
JSON, RAW = "application/json", "application/octet-stream"
BINARY: Schema = {"type": "string", "format": "binary"}


def ref(kind: str, name: str) -> Schema:
    """A reference to a component.

    Args:
        kind: Such as ``schemas``.
        name: Of the component.
    """
    return {"$ref": f"#/components/{kind}/{name}"}


def record(properties: Schema, optional: Sequence[str] = (), *, closed: bool = True) -> Schema:
    """An object's schema.

    Args:
        properties: Schemas by field.
        optional: Fields that may be left out.
        closed: No other fields are there.
    """
    required = [name for name in properties if name not in optional]
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema | ({"additionalProperties": False} if closed else {})


def listed(items: Schema, **limits: int) -> Schema:
    """An array's schema; ``limits`` such as minItems."""
    return {"type": "array", "items": items, **limits}


def body(schema: Schema, media_type: str = JSON, **more: Any) -> Schema:
    """A body's content of one type; ``more`` such as examples."""
    return {media_type: {"schema": schema, **more}}


TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_NUMBER: Schema = {"type": "number"}
_MAYBE: Schema = {"type": "number", "nullable": True}
_TRUTH: Schema = {"type": "boolean"}
_DATATYPE: Schema = {"type": "string", "enum": list(DTYPES)}

PIXELS = {
    **listed(
        listed({"type": "integer", "minimum": 0, "maximum": 255}, minItems=28, maxItems=28),
        minItems=28,
        maxItems=28,
    ),
    "description": "28 rows of 28 pixels from the top; 0 = ground, 255 = ink",
}
IDENTITY: Schema = {
    "model": TEXT | {"example": "cnn"},
    "version": TEXT | {"description": "by default the start of the weights' SHA-256"},
    "variant": TEXT | {"description": "which of the bundle's models", "example": "onnx"},
    "device": {"type": "string", "enum": ["cpu", "cuda"]},
    "provider": TEXT | {"example": "CPUExecutionProvider"},
}
_VERDICT = record(
    {
        "format": TEXT,
        "precision": TEXT,
        "device": IDENTITY["device"],
        "passed": _TRUTH,
        "scaled_error": _NUMBER | {"description": "largest error by the reference's largest value"},
        "rms_ratio": _NUMBER | {"description": "RMS error by that of the eager reference"},
        "sqnr_db": _MAYBE,
        "label_flips": _COUNT,
        "accuracy": _MAYBE,
        "certificate": _MAYBE | {"description": "above 2, no label of the samples can change"},
        "samples": _COUNT,
        "batch_sizes": listed(_COUNT),
        "tolerance": {"type": "object", "description": "the bounds that it was judged by"},
    }
)
_GOLDEN_RESULT = record(
    {
        "samples": _COUNT,
        "batch_sizes": listed(_COUNT),
        "scaled_error": _NUMBER,
        "scaled_error_bound": _MAYBE,
        "wrong_labels": _COUNT,
        "failures": listed(TEXT),
    }
)
_SAMPLES = record({"name": TEXT, "samples": _COUNT, "sha256": TEXT})
_GUARD_SUMMARY = record({"learned": _SAMPLES, "held_out": _SAMPLES, "unusual_below": _SHARE})
_GUARD_SUMMARY |= {"nullable": True, "description": "what it compares with, and from where on"}
_GUARD = record(
    {
        "usual": _TRUTH | {"description": "p_value is not under the guard's unusual_below"},
        "p_value": _SHARE
        | {"description": "share of held-out images at least as strange (conformal)"},
        "reason": TEXT | {"nullable": True, "description": "why not, if it is unusual"},
    }
) | {
    "nullable": True,
    "description": "is the image like those that the model learned from? null: not known",
}
_FEATURES = record(
    {
        "layer": TEXT | {"example": "features.1 (ReLU after Conv 5x5, 16 channels)"},
        "output": {"type": "object", "description": "the tensor that it gives"},
        "verdict": ref("schemas", "ParityVerdict"),
    }
) | {"nullable": True, "description": "the proof of its feature maps; null: it has none"}
_PARAMETERS: Schema = {"type": "object", "description": "more than named here is left alone"}

SCHEMAS: Schema = {
    "Error": record({"error": TEXT | {"description": "what came, what was expected, what to do"}}),
    "ModelCards": record({"models": listed(ref("schemas", "ModelCard"), minItems=1)}),
    "ModelCard": record(
        IDENTITY
        | {
            "inputs": listed(ref("schemas", "TensorMetadata"), minItems=1),
            "outputs": listed(ref("schemas", "TensorMetadata"), minItems=1),
            "labels": listed(TEXT),
            "parameters": _COUNT | {"description": "trainable numbers"},
            "test_accuracy": _SHARE | {"nullable": True},
            "test_images": TEXT | {"nullable": True},
            "parity": listed(ref("schemas", "ParityVerdict"), minItems=1),
            "golden": ref("schemas", "GoldenResult"),
            "guard": _GUARD_SUMMARY,
            "features": _FEATURES,
            "default": _TRUTH | {"description": "answers requests that name no model"},
        },
        closed=False,
    ),
    "ParityVerdict": _VERDICT,
    "GoldenResult": _GOLDEN_RESULT,
    "GoldenCheck": record(
        {
            "golden": {
                "type": "object",
                "description": "by model",
                "additionalProperties": {"type": "string", "enum": ["right"]},
            }
        }
    ),
    "Health": {
        "type": "object",
        "properties": {
            "live": {"type": "boolean"},
            "ready": {"type": "boolean"},
            "name": TEXT | {"description": "the model's"},
        },
    },
    "ServerMetadata": record(
        {"name": TEXT, "version": TEXT, "extensions": listed(TEXT | {"description": "names"})}
    ),
    "ModelMetadata": record(
        {
            "name": TEXT,
            "versions": listed(TEXT, minItems=1),
            "platform": TEXT,
            "inputs": listed(ref("schemas", "TensorMetadata"), minItems=1),
            "outputs": listed(ref("schemas", "TensorMetadata"), minItems=1),
        }
    ),
    "TensorMetadata": record(
        {
            "name": TEXT,
            "datatype": _DATATYPE,
            "shape": listed({"type": "integer", "minimum": -1})
            | {"description": "-1: the batch axis"},
        }
    ),
    "InferenceResponse": record(
        {
            "model_name": TEXT,
            "model_version": TEXT,
            "id": TEXT | {"description": "the request's, if it bore one"},
            "outputs": listed(ref("schemas", "ResponseOutput")),
        },
        optional=["id"],
    ),
    "ResponseOutput": record(
        {
            "name": TEXT,
            "datatype": _DATATYPE,
            "shape": listed(_COUNT),
            "parameters": record({"binary_data_size": _COUNT | {"description": "bytes behind"}}),
            "data": listed({}) | {"description": "values in row-major order"},
        },
        optional=["parameters", "data"],
    ),
}


def predict_schemas(models: Sequence[str], labels: Sequence[Sequence[str]], most: int) -> Schema:
    """Bodies of /predict and /predict/image.

    Args:
        models: Names of those that read digits.
        labels: Of each of them.
        most: Images in one request.
    """
    counts = [len(each) for each in labels]
    return {
        "Image": PIXELS,
        "PredictRequest": record(
            {
                "images": {
                    "description": "one image or many",
                    "oneOf": [
                        ref("schemas", "Image"),
                        listed(ref("schemas", "Image"), minItems=1, maxItems=most),
                    ],
                },
                "model": {"type": "string", "nullable": True, "enum": [*models, None]},
            },
            optional=["model"],
        ),
        "Prediction": record(
            {
                "label": TEXT | {"enum": list(dict.fromkeys(itertools.chain(*labels)))},
                "probabilities": listed(_SHARE, minItems=min(counts), maxItems=max(counts))
                | {
                    "description": "one for each label of GET /models, in its order; their sum is 1"
                },
                "guard": _GUARD,
            }
        ),
        "PredictAnswer": record(
            IDENTITY
            | {
                "model": TEXT | {"enum": list(models)},
                "predictions": listed(ref("schemas", "Prediction"), minItems=1, maxItems=most),
                "image": ref("schemas", "Image"),  # with show=image
            },
            optional=["image"],
        ),
    }


def request_schemas(inputs: Sequence[str], datatypes: Sequence[str], outputs: Sequence[str]) -> Any:
    """The body of an inference request, by the tensors of all models.

    Args:
        inputs: Names.
        datatypes: Of the inputs.
        outputs: Names.
    """
    wants = {"type": "boolean", "description": "as bytes behind the answer's JSON"}
    return {
        "InferenceRequest": record(
            {
                "id": TEXT | {"nullable": True, "description": "comes back in the answer"},
                "parameters": _PARAMETERS | {"properties": {"binary_data_output": wants}},
                "inputs": listed(ref("schemas", "RequestInput"), minItems=1),
                "outputs": listed(ref("schemas", "RequestOutput"))
                | {"nullable": True, "description": "all of them if not said"},
            },
            optional=["id", "parameters", "outputs"],
            closed=False,
        ),
        "RequestInput": record(
            {
                "name": {"type": "string", "enum": list(inputs)},
                "shape": listed({"type": "integer", "minimum": 1}, minItems=1),
                "datatype": {"type": "string", "enum": list(datatypes)},
                "parameters": _PARAMETERS
                | {
                    "properties": {
                        "binary_data_size": {
                            "type": "integer",
                            "minimum": 1,
                            "description": "bytes behind the JSON, in place of data",
                        }
                    }
                },
                "data": listed({})
                | {"nullable": True, "description": "row-major, flat or nested as the shape says"},
            },
            optional=["parameters", "data"],
            closed=False,
        ),
        "RequestOutput": record(
            {
                "name": {"type": "string", "enum": list(outputs)},
                "parameters": _PARAMETERS | {"properties": {"binary_data": wants}},
            },
            optional=["parameters"],
            closed=False,
        ),
    }
