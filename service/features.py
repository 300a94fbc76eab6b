"""The feature maps of a model's first layer, proven like its answers, one image at a time.

Few ask for them, and their answers are long. So they have a queue and a thread of their own, in
which the JSON is written too: nobody who asks for digits waits for them.

Shape suffixes: C channels, D depth, H height, W width, U units.
"""

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from export.bundle import Bundle
from export.golden import Golden
from export.manifest import BundleError, FeatureMaps, Manifest
from export.parity.metrics import Array, Arrays
from export.parity.tolerances import Device
from export.session import OnnxModel
from service.batcher import Batcher
from service.proving import prove
from service.settings import Settings

MOST_WAITING = 8
DIGITS = 4
JSON_BYTES = "json"  # the one output of what the queue runs


@dataclass(frozen=True)
class ProvenFeatures:
    """The first layer's file, opened, its golden samples answered rightly.

    Attributes:
        maps: What the manifest says of it.
        engine: Runs it: always the fp32 file, whichever variant answers requests for digits.
        variant: "onnx", or "onnx-tf32" where products are rounded.
    """

    maps: FeatureMaps
    engine: OnnxModel
    variant: str


def open_features(bundle: Bundle, device: Device, settings: Settings) -> ProvenFeatures | None:
    """Open and prove the file of a bundle's first layer; None if it has none.

    Raises:
        BundleError: Its verdict is not passed, or the file cannot be run.
        DeviceUnavailableError: The device is not there.
        UnprovenError: Golden samples were answered wrongly.
    """
    maps = bundle.manifest.features
    if maps is None:
        return None
    if not maps.verdict.passed:
        raise BundleError(f"{bundle.folder} carries no passed parity verdict for its feature maps")
    tf32 = settings.tf32 and device == "cuda"
    variant = "onnx-tf32" if tf32 else "onnx"
    engine = OnnxModel(bundle.path("features"), device, settings.threads, tf32=tf32)
    prove(
        f"{bundle.manifest.name} (feature maps)",
        engine,
        Golden.load(bundle.path("features-golden")),
        [maps.output],
        bundle.manifest.tolerance(device, variant),
    )
    return ProvenFeatures(maps, engine, variant)


class FeatureServer:
    """Answers with the feature maps of one model.

    Attributes:
        batcher: Where to wait; its inputs are the model's, one image, its output the JSON.
    """

    def __init__(self, features: ProvenFeatures, manifest: Manifest, deadline_s: float) -> None:
        """Make the queue; the thread starts with the first request.

        Args:
            features: Proven.
            manifest: Of the same bundle.
            deadline_s: What waited longer is given up before it is computed.
        """
        self._features = features
        self._who: dict[str, object] = {
            "model": manifest.name,
            "version": manifest.version,
            "variant": features.variant,
            "device": features.engine.device,
            "provider": features.engine.provider,
            "layer": features.maps.layer,
        }
        self.batcher = Batcher(
            self._answer,
            max_batch_samples=1,
            max_queue_samples=MOST_WAITING,
            in_loop=False,
            deadline_s=deadline_s,
        )

    @property
    def headers(self) -> dict[str, str]:
        """Of an answer, where they are others than those of the model's."""
        return {
            "x-model-variant": self._features.variant,
            "x-provider": self._features.engine.provider,
        }

    def _answer(self, inputs: Arrays) -> Arrays:
        values = self._features.engine(inputs)[self._features.maps.output.name][0]
        return {JSON_BYTES: np.array([answer_json(self._who, values)], dtype=object)}


def answer_json(who: dict[str, object], values: Array) -> bytes:
    """The answer's body: who gave it, and each map.

    Args:
        who: Its first fields.
        values: Of one image: float [C, ...] or [U].
    """
    write = functools.partial(
        json.dumps, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    # Map by map: a single call would keep the interpreter, and so the event loop, until its end.
    maps = ",".join(
        write({"name": name, "height": len(map_HW), "width": map_HW.shape[1]})[:-1]
        + f',"values":{write(np.round(map_HW.astype(np.float64), DIGITS).tolist())}}}'
        for name, map_HW in named_maps(values)
    )
    return f'{write(who)[:-1]},"maps":[{maps}]}}'.encode()


def named_maps(values: Array) -> Iterator[tuple[str, Array]]:
    """What is shown of a layer: name and float [H, W] of each map.

    Units have no places: they fill rows, from the top, of a rectangle that is as square as their
    number allows (512 units are 16 rows of 32).

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
