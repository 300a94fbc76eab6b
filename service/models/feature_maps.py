"""Serves the feature maps of a model's first layer, one image at a time.

Feature maps are requested rarely, and the responses are long. They have a separate queue and
thread, which also encodes the JSON, so that they do not delay inference requests.

Shape suffixes: C channels, D depth, H height, W width, U units.
"""

import math
from collections.abc import Iterator

import numpy as np

from export.bundle.manifest import FeatureMaps
from export.bundle.metrics import Array, Arrays
from export.bundle.session import OnnxModel
from service.engine.batcher import Batcher
from service.protocol.answers import FeatureMap, Identity
from service.protocol.json_values import encode_json

MAX_QUEUED = 8
DECIMALS = 4
JSON_BYTES = "json"  # the only output of the batcher


class FeatureMapServer:
    """Answers with the feature maps of one model.

    Attributes:
        batcher: Takes the model's inputs, one image; its output is the JSON of the response.
        variant: The value of the header x-model-variant.
        provider: The value of the header x-provider.
    """

    def __init__(
        self, engine: OnnxModel, maps: FeatureMaps, identity: Identity, deadline_s: float
    ) -> None:
        """Make the queue for a verified first layer; its thread starts with the first request."""
        self._engine, self._maps, self._identity = engine, maps, identity
        self.variant, self.provider = identity["variant"], identity["provider"]
        self.batcher = Batcher(
            self._answer,
            max_batch_samples=1,
            max_queue_samples=MAX_QUEUED,
            max_loop_samples=0,
            deadline_s=deadline_s,
        )

    def _answer(self, inputs: Arrays) -> Arrays:
        values = self._engine(inputs)[self._maps.output.name][0]
        head = encode_json(self._identity | {"layer": self._maps.layer})
        # Encode map by map: one call for all would hold the GIL and so block the event loop.
        maps = b",".join(
            encode_json(
                FeatureMap(
                    name=name,
                    height=map_HW.shape[0],
                    width=map_HW.shape[1],
                    values=np.round(map_HW.astype(np.float64), DECIMALS).tolist(),
                )
            )
            for name, map_HW in name_maps(values)
        )
        content = head[:-1] + b',"maps":[' + maps + b"]}"
        return {JSON_BYTES: np.array([content], dtype=object)}


def name_maps(values: Array) -> Iterator[tuple[str, Array]]:
    """Yield name and float [H, W] of each map.

    The units of a dense layer have no spatial order. They fill a rectangle row by row, from the
    top, as close to a square as their number allows (512 units are 16 rows of 32).

    Args:
        values: Of one image: float [U], [C, W], [C, H, W] or [C, D, H, W].
    """
    if values.ndim == 1:
        height = next(n for n in range(math.isqrt(len(values)), 0, -1) if len(values) % n == 0)
        yield "units", values.reshape(height, -1)
        return
    for channel, part in enumerate(values):
        if part.ndim <= 2:  # noqa: PLR2004 - height and width
            yield f"channel {channel}", np.atleast_2d(part)
        else:
            for depth, map_HW in enumerate(part):
                yield f"channel {channel}, depth {depth}", map_HW
