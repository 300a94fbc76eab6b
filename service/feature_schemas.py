"""Feature maps in the OpenAPI document: their request and their answer."""

from collections.abc import Sequence

from service.schemas import IDENTITY, PIXELS, TEXT, Schema, listed, record, ref

_SIDE: Schema = {"type": "integer", "minimum": 1}
_MAP = record(
    {
        "name": TEXT
        | {
            "description": "channel C of a convolution over images or rows (these have height 1), "
            "channel C, depth D of one over volumes, or units: all of a dense layer, which have no "
            "places and fill rows, from the top, of a rectangle as square as their number allows "
            "(512 are 16 rows of 32)"
        },
        "height": _SIDE,
        "width": _SIDE,
        "values": listed(listed({"type": "number"}, minItems=1), minItems=1)
        | {"description": "rows from the top, rounded to 4 digits after the point"},
    }
)


def feature_schemas(models: Sequence[str]) -> Schema:
    """Bodies of /models/{model}/features.

    Args:
        models: Names of those that have feature maps.
    """
    image = ref("schemas", "Image")
    return {
        "Image": PIXELS,
        "FeaturesRequest": record(
            {
                "images": {
                    "description": "one image, alone or in a list",
                    "oneOf": [image, listed(image, minItems=1, maxItems=1)],
                }
            }
        ),
        "FeatureMap": _MAP,
        "FeaturesAnswer": record(
            IDENTITY
            | {
                "model": TEXT | {"enum": list(models)},
                "layer": TEXT | {"example": "features.1 (ReLU after Conv 5x5, 16 channels)"},
                "maps": listed(ref("schemas", "FeatureMap"), minItems=1),
            }
        ),
    }
