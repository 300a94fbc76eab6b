"""Golden samples: a few real images whose answers travel with the bundle. Knows no torch.

Whoever runs a model from a bundle, the service at its start or a check on a strange machine, asks
it these images first, on the device that is going to be used.

Shape suffixes: G golden images, H and W 28 pixels, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import BaseModel, ConfigDict

from export.bundle import BundleError
from export.parity.metrics import Array, scaled_difference, softmax_error
from export.parity.tolerances import PROBABILITY_ERROR, Tolerance

# A service runs batches of any size: the samples are asked in one batch, one by one, and in
# uneven parts.
BATCH_SIZES = (1, 7, 64)

Predict = Callable[[Array], tuple[Array, Array]]
"""uint8 [N, 28, 28] to (logits, probabilities), float32 [N, K] each."""


@dataclass(frozen=True)
class Golden:
    """The samples and the reference's answers.

    Attributes:
        images: uint8 [G, 28, 28], 0 = paper, 255 = ink.
        digits: int64 [G], what the images really show.
        logits: float32 [G, K], eager float32 on the CPU.
        truth: float64 [G, K], eager float64 on the CPU.
    """

    images: Array
    digits: Array
    logits: Array
    truth: Array

    @property
    def labels(self) -> Array:
        """int64 [G], what the reference reads the images as."""
        return np.asarray(self.logits.argmax(axis=1))

    def save(self, path: Path) -> None:
        """Write an .npz whose bytes depend on the samples alone."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Golden":
        """Read what ``save`` wrote; nothing in it is unpickled.

        Raises:
            BundleError: Not such a file, or its arrays do not fit each other.
        """
        try:
            # Opened here: NumPy would leave a file that is no archive open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                golden = cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise BundleError(f"{path} does not hold golden samples: {error}") from error
        counts = {len(getattr(golden, field.name)) for field in fields(cls)}
        if len(counts) != 1 or golden.images.dtype != np.uint8 or len(golden.images) == 0:
            raise BundleError(f"{path} does not hold golden samples: its arrays do not fit")
        return golden


class GoldenResult(BaseModel):
    """What came of the golden samples; ``failures`` says in words what was wrong, if anything."""

    model_config = ConfigDict(frozen=True)

    samples: int
    batch_sizes: tuple[int, ...]
    scaled_error: float
    scaled_error_bound: float
    wrong_labels: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return not self.failures


def check_golden(golden: Golden, predict: Predict, tolerance: Tolerance) -> GoldenResult:
    """Ask a running model the golden samples at several batch sizes.

    Args:
        golden: The bundle's samples.
        predict: The model, on the device that is going to be used.
        tolerance: What the bundle allows the served format on that device.
    """
    worst, wrong, failures = 0.0, 0, []
    bound = tolerance.scaled_error
    for batch_size in BATCH_SIZES:
        logits_GK, probabilities_GK = run_batched(predict, golden.images, batch_size)
        if logits_GK.shape != golden.logits.shape or probabilities_GK.shape != logits_GK.shape:
            failures.append(
                f"batch {batch_size}: answers have shape {logits_GK.shape}, "
                f"expected {golden.logits.shape}"
            )
            continue
        error = scaled_difference(logits_GK, golden.logits)
        flipped = int((logits_GK.argmax(axis=1) != golden.labels).sum())
        softmax = softmax_error(probabilities_GK, logits_GK)
        worst, wrong = max(worst, error), max(wrong, flipped)
        if not error <= bound:
            failures.append(f"batch {batch_size}: scaled error {error:.2e} > {bound:.0e}")
        if flipped:
            failures.append(f"batch {batch_size}: {flipped} of {len(golden.labels)} labels differ")
        if not softmax <= PROBABILITY_ERROR:
            failures.append(
                f"batch {batch_size}: probabilities differ from the softmax of the logits by "
                f"{softmax:.2e} > {PROBABILITY_ERROR:.0e}"
            )
    return GoldenResult(
        samples=len(golden.images),
        batch_sizes=BATCH_SIZES,
        scaled_error=worst,
        scaled_error_bound=bound,
        wrong_labels=wrong,
        failures=tuple(failures),
    )


def run_batched(predict: Predict, images_NHW: Array, batch_size: int) -> tuple[Array, Array]:
    """Logits and probabilities, [N, K] each, of images given to the model so many at a time."""
    parts = [
        predict(images_NHW[start : start + batch_size])
        for start in range(0, len(images_NHW), batch_size)
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
